"""Filters whose choices are known beforehand: none of them reads the table to find its choices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from capataz import handlers
from capataz.models import Queue
from capataz.priority import HIGHEST, LOWEST
from capataz.states import HELD, State


class _FieldFilter(admin.SimpleListFilter):
    """Rows whose field has the chosen value."""

    field: ClassVar[str]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows to show."""
        value = self.value()
        known = {str(key) for key, _ in self.lookup_choices}
        if value is None:
            return queryset
        return queryset.filter(**{self.field: value}) if value in known else queryset.none()


class StateFilter(_FieldFilter):
    """By state."""

    title = "state"
    parameter_name = field = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Every state."""
        return [(state.value, str(state.label)) for state in State]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The tasks to show. What is held is released: said aloud, it leads to a small index."""
        chosen = super().queryset(request, queryset)
        return chosen.filter(released_at__isnull=False) if self.value() in HELD else chosen


class TypeFilter(_FieldFilter):
    """By type."""

    title = "type"
    parameter_name = field = "type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """The registered types."""
        return [(handler.name, handler.name) for handler in handlers.registered()]


class QueueFilter(_FieldFilter):
    """By queue."""

    title = "queue"
    parameter_name = field = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """The queues."""
        return [(name, name) for name in Queue.objects.values_list("name", flat=True)]


class PriorityFilter(_FieldFilter):
    """By priority."""

    title = "priority"
    parameter_name = field = "priority"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Every priority, the most urgent first."""
        return [(str(step), str(step)) for step in range(HIGHEST, LOWEST - 1, -1)]
