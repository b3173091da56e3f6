"""Events in the admin: look."""

from __future__ import annotations

import uuid

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from capataz.admin.paging import ReadOnlyAdmin
from capataz.models import Event


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """What happened, newest first."""

    list_display = ("at", "kind", "subject", "detail")
    ordering = ("-id",)
    sortable_by = ()
    search_fields = ("task_id",)
    search_help_text = "The exact id of a task."

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Event], search_term: str
    ) -> tuple[QuerySet[Event], bool]:
        """The events of one task; only its id has an index."""
        if not search_term.strip():
            return queryset, False
        try:
            return queryset.filter(task_id=uuid.UUID(search_term.strip())), False
        except ValueError:
            return queryset.none(), False
