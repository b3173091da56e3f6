"""A bearer token of the HTTP API. Only its digest is kept."""

from __future__ import annotations

import hashlib
import secrets

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

PREFIX = "cpz_"


class Role(models.TextChoices):
    """What the owner of a token may do; each role may do all that those before it may."""

    VIEWER = "viewer", "Viewer"
    PRODUCER = "producer", "Producer"
    OPERATOR = "operator", "Operator"
    ADMIN = "admin", "Admin"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what ``other`` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


def digest_of(secret: str) -> str:
    """The SHA-256 of a token: its 240 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenQuerySet(models.QuerySet["Token"]):
    """Questions about tokens."""

    def valid(self) -> TokenQuerySet:
        """Tokens that are neither revoked nor past their end."""
        return self.filter(Q(expires_at__isnull=True) | Q(expires_at__gt=Now()), revoked_at__isnull=True)


class Token(models.Model):
    """Who may call the API, and as what."""

    name = models.CharField(max_length=100)
    role = models.CharField(max_length=16, choices=Role.choices)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=12, editable=False, help_text="How the token starts.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = TokenQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.name} ({self.role})"

    @classmethod
    def issue(cls, *, name: str, role: Role) -> tuple[Token, str]:
        """A new token and its secret, which is shown this once and cannot be read again."""
        secret = PREFIX + secrets.token_urlsafe(30)
        return cls.objects.create(name=name, role=role, digest=digest_of(secret), hint=secret[:8]), secret
