"""Reports in the admin: look, and download."""

from __future__ import annotations

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from capataz.admin.paging import ReadOnlyAdmin
from capataz.models import Report


@admin.register(Report)
class ReportAdmin(ReadOnlyAdmin):
    """What tasks have made, newest first."""

    list_display = ("title", "created_at", "downloads")
    fields = ("id", "title", "created_at", "downloads")
    readonly_fields = fields
    sortable_by = ()

    @admin.display(description="files")
    def downloads(self, report: Report) -> SafeString:
        """Its formats, each to download."""
        address = reverse("api-v1:report", args=[report.pk])
        formats = report.files.order_by("format").values_list("format", flat=True)
        return format_html_join(
            " ", '<a href="{}?format={}">{}</a>', ((address, each, each) for each in formats)
        )
