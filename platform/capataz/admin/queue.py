"""Queues in the admin: pause and resume."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from capataz.admin import outcome_of_action
from capataz.admin.paging import ReadOnlyAdmin
from capataz.lifecycle import pausing
from capataz.models import Queue


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin):
    """The queues that handlers name."""

    list_display = ("name", "paused", "paused_at", "pause_reason", "created_at")
    actions = ("pause", "resume")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether this person may pause and resume."""
        return request.user.has_perm("capataz.change_queue")

    @admin.display(boolean=True)
    def paused(self, queue: Queue) -> bool:
        """Whether it starts nothing."""
        return queue.is_paused

    @admin.action(description="Pause the selected queues", permissions=["operate"])
    def pause(self, request: HttpRequest, queues: QuerySet[Queue]) -> None:
        """Start nothing more from them."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(
            self, request, queues, lambda queue: pausing.pause(queue, reason="admin", by=by), "paused"
        )

    @admin.action(description="Resume the selected queues", permissions=["operate"])
    def resume(self, request: HttpRequest, queues: QuerySet[Queue]) -> None:
        """Start tasks of them again."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(self, request, queues, lambda queue: pausing.resume(queue, by=by), "resumed")
