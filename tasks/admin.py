"""What is kept of other services in the admin: look."""

from __future__ import annotations

from django.contrib import admin

from capataz.admin.paging import ReadOnlyAdmin
from tasks.models import ExternalItem, ExternalSource


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
