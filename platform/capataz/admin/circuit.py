"""Circuits in the admin: open, close and reset."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from capataz.admin import outcome_of_action
from capataz.admin.paging import ReadOnlyAdmin
from capataz.lifecycle import circuit_breaking
from capataz.models import Circuit


@admin.register(Circuit)
class CircuitAdmin(ReadOnlyAdmin):
    """The circuits of types and of what handlers call."""

    list_display = ("name", "state", "forced", "failures", "changed_at", "retry_at", "last_failure_at")
    list_filter = ("state", "forced")
    actions = ("force_open", "force_closed", "reset")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether this person may open, close and reset."""
        return request.user.has_perm("capataz.change_circuit")

    @admin.action(description="Open the selected circuits until they are reset", permissions=["operate"])
    def force_open(self, request: HttpRequest, circuits: QuerySet[Circuit]) -> None:
        """Let no call through."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(
            self, request, circuits, lambda each: circuit_breaking.force_open(each, by=by), "opened"
        )

    @admin.action(description="Close the selected circuits until they are reset", permissions=["operate"])
    def force_closed(self, request: HttpRequest, circuits: QuerySet[Circuit]) -> None:
        """Let every call through."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(
            self, request, circuits, lambda each: circuit_breaking.force_closed(each, by=by), "closed"
        )

    @admin.action(description="Reset the selected circuits", permissions=["operate"])
    def reset(self, request: HttpRequest, circuits: QuerySet[Circuit]) -> None:
        """Close them, with nothing counted."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(
            self, request, circuits, lambda each: circuit_breaking.reset(each, by=by), "reset"
        )
