"""What is kept of other services and of files in the admin: look."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from capataz.admin.paging import ReadOnlyAdmin
from tasks.models import ExternalItem, ExternalSource, IndexedFile


@admin.register(ExternalSource)
class ExternalSourceAdmin(ReadOnlyAdmin):
    """Where other services are looked at, and how far."""

    list_display = ("name", "cursor", "looked_at", "not_before", "error")


@admin.register(ExternalItem)
class ExternalItemAdmin(ReadOnlyAdmin):
    """Issues and messages, those that changed last first."""

    list_display = ("source", "external_id", "changed_at")
    list_filter = ("source",)
    list_select_related = ("source",)
    sortable_by = ()
    search_fields = ("=external_id",)
    search_help_text = "The exact number of an issue, or time of a message."


@admin.register(IndexedFile)
class IndexedFileAdmin(ReadOnlyAdmin):
    """The front matter index, by path."""

    list_display = ("path", "title", "date", "tags", "modified")
    list_filter = ("root",)
    sortable_by = ()
    search_fields = ("path",)  # shows the box; what it means is said below
    search_help_text = "An exact path, or a tag."

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[IndexedFile], search_term: str
    ) -> tuple[QuerySet[IndexedFile], bool]:
        """The file at this path, and those with this tag."""
        if not search_term:
            return queryset, False
        return queryset.filter(Q(path=search_term) | Q(tags__contains=[search_term])), False
