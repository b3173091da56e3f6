"""Tokens in the admin: issue one, see its secret once, revoke it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from capataz.admin.paging import AnyModelAdmin
from capataz.models import Role, Token


@admin.register(Token)
class TokenAdmin(AnyModelAdmin):
    """Who may call the API. A token is never edited or deleted: it is issued, and revoked."""

    list_display = ("name", "role", "hint", "created_at", "last_used_at", "expires_at", "revoked_at")
    list_filter = ("role",)
    fields = ("name", "role", "expires_at")
    actions = ("revoke",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: a token that changed its role would not be the one that was issued."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: that it existed stays known."""
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Whether this person may make tokens worthless."""
        return request.user.has_perm("capataz.change_token")

    def save_model(self, request: HttpRequest, obj: Token, form: ModelForm[Token], change: bool) -> None:
        """Issue the token; its secret lives only until the answer to this request."""
        issued, secret = Token.issue(name=obj.name, role=Role(obj.role))
        if obj.expires_at is not None:
            Token.objects.filter(pk=issued.pk).update(expires_at=obj.expires_at)
        obj.pk = issued.pk
        request.issued_secret = secret  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: Token, post_url_continue: str | None = None
    ) -> HttpResponse:
        """A page of its own: a message would travel through a cookie."""
        context = {
            **self.admin_site.each_context(request),
            "title": "The token was issued",
            "opts": self.opts,
            "token": obj,
            "secret": request.issued_secret,  # type: ignore[attr-defined]
        }
        return TemplateResponse(request, "admin/capataz/token/issued.html", context)

    @admin.action(description="Revoke the selected tokens", permissions=["revoke"])
    def revoke(self, request: HttpRequest, tokens: QuerySet[Token]) -> None:
        """Make them worthless at once."""
        revoked = Token.objects.filter(pk__in=tokens.values("pk"), revoked_at__isnull=True).update(
            revoked_at=Now()
        )
        self.message_user(request, f"{revoked} revoked.")
