"""Workers in the admin: look."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import F

from capataz.admin.paging import ReadOnlyAdmin
from capataz.models import Worker


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Every incarnation of a worker that is still listed."""

    list_display = (
        "name", "state", "phase", "host", "pid", "running", "claimed", "processes", "cpu", "ram",
        "heartbeat_at",
    )  # fmt: skip
    list_filter = ("state",)
    search_fields = ("name",)
    ordering = (F("stopped_at").desc(nulls_first=True), "-id")  # the living first

    @admin.display(description="CPU %")
    def cpu(self, worker: Worker) -> str:
        """Of the parent and its children together."""
        return f"{worker.cpu_percent:.1f}"

    @admin.display(description="RAM MB")
    def ram(self, worker: Worker) -> Any:
        """Of the parent and its children together."""
        return f"{worker.ram_mb:.0f}"
