"""Who calls, and whether that role may: bearer tokens for machines, sessions for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Q
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils import timezone
from ninja.security.base import AuthBase
from ninja.utils import check_csrf

from capataz.api.problems import Problem
from capataz.models import Role, Token
from capataz.models.membership import role_of
from capataz.models.token import digest_of

# A token's last use is written at most this often: a write per request would cost more than the request.
LAST_USE = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Who calls: the name of a token or of a user, and what that one may do."""

    name: str
    role: Role


class Allows(AuthBase):
    """Lets callers of this role, and of the roles above it, pass. Every route names one."""

    openapi_type = "http"
    openapi_scheme = "bearer"

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role

    def __call__(self, request: HttpRequest) -> Caller:
        """The caller. Raises Problem 401 if nobody is named, 403 if that one may not."""
        caller = identify(request)
        if not caller.role.includes(self.role):
            detail = f"This needs the role {self.role.value}; you have {caller.role.value}."
            raise Problem(403, "forbidden", detail)
        return caller


def identify(request: HttpRequest) -> Caller:
    """The caller of this request. A bad token is refused even where a session would do."""
    if "Authorization" in request.headers:
        return _token_bearer(request.headers["Authorization"])
    return _session_user(request)


def _token_bearer(header: str) -> Caller:
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("Use a bearer token.")
    secret = secret.strip()
    # Headers are decoded as Latin-1, and a secret is ASCII: anything else is nobody's.
    token = Token.objects.valid().filter(digest=digest_of(secret)).first() if secret.isascii() else None
    if token is None:
        raise _unauthorized("The token is unknown, revoked or expired.", error="invalid_token")
    _note_use(token)
    return Caller(f"token {token.name}"[:100], Role(token.role))


def _note_use(token: Token) -> None:
    if token.last_used_at is not None and timezone.now() - token.last_used_at < LAST_USE:
        return
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=Now() - LAST_USE)
    Token.objects.filter(stale, pk=token.pk).update(last_used_at=Now())


def _session_user(request: HttpRequest) -> Caller:
    role = role_of(request.user)
    if role is None:
        if request.user.is_authenticated:
            raise Problem(403, "forbidden", "Your account has no role here.")
        raise _unauthorized("Send a bearer token, or sign in.")
    if check_csrf(request) is not None:
        raise Problem(
            403, "csrf_failed", "The CSRF token is missing or wrong; a session needs one to change things."
        )
    return Caller(request.user.get_username()[:100], role)


def _unauthorized(detail: str, *, error: str = "") -> Problem:
    challenge = 'Bearer realm="capataz"' + (f', error="{error}"' if error else "")
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})
