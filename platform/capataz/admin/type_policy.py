"""Types' policies in the admin: what is overridden, and to what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest

from capataz import handlers
from capataz.admin import outcome_of_action
from capataz.errors import InvalidSubmission
from capataz.lifecycle import overriding
from capataz.models import TypePolicy

# Django's own classes are generic for the type checker only.
if TYPE_CHECKING:
    AnyModelForm = forms.ModelForm[TypePolicy]
    AnyModelAdmin = admin.ModelAdmin[TypePolicy]
else:
    AnyModelForm = forms.ModelForm
    AnyModelAdmin = admin.ModelAdmin


class TypePolicyForm(AnyModelForm):
    """One type and its overridden parts; what makes no sense is told by its name."""

    def clean(self) -> dict[str, Any]:
        """Have the verb look at it, as if it were set."""
        cleaned: dict[str, Any] = super().clean() or {}
        name = cleaned.get("name") or self.instance.pk
        if not handlers.is_registered(name or ""):
            known = ", ".join(each.name for each in handlers.registered())
            self.add_error("name" if "name" in self.fields else None, f"must be one of {known}")
        elif "override" in cleaned:
            try:
                overriding.check(name, cleaned["override"])
            except InvalidSubmission as refused:
                for fault in refused.faults:
                    self.add_error("override", f"{fault.pointer}: {fault.detail}")
        return cleaned


@admin.register(TypePolicy)
class TypePolicyAdmin(AnyModelAdmin):
    """Overrides of what handlers declare. To delete one is to take it back."""

    form = TypePolicyForm
    list_display = ("name", "override", "changed_at")
    readonly_fields = ("changed_at",)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Whose policy it is does not change."""
        return ("name", "changed_at") if obj else ("changed_at",)

    def save_model(self, request: HttpRequest, obj: TypePolicy, form: Any, change: bool) -> None:
        """Override, with its event."""
        overriding.override(obj.name, obj.override, by=outcome_of_action.operator(request))

    def delete_model(self, request: HttpRequest, obj: TypePolicy) -> None:
        """Take it back, with its event."""
        overriding.take_back(obj.name, by=outcome_of_action.operator(request))

    @transaction.atomic
    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[TypePolicy]) -> None:
        """Take these back, each with its event."""
        for policy in queryset:
            self.delete_model(request, policy)
