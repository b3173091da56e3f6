"""Queues in the admin: pause and resume, and how many tasks may wait."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from capataz.admin import outcome_of_action
from capataz.admin.paging import ReadOnlyAdmin
from capataz.lifecycle import limiting, pausing
from capataz.models import Queue
from capataz.models.queue_load import queue_loads


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin):
    """The queues that handlers name."""

    list_display = (
        "name", "paused", "paused_at", "pause_reason", "waiting", "later", "waiting_limit", "created_at",
    )  # fmt: skip
    fields = ("name", "waiting_limit", "paused_at", "pause_reason", "created_at")
    readonly_fields = ("name", "paused_at", "pause_reason", "created_at")
    actions = ("pause", "resume")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether this person may pause and resume, and set a limit."""
        return request.user.has_perm("capataz.change_queue")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The form has the limit alone."""
        return self.has_operate_permission(request)

    def save_model(self, request: HttpRequest, obj: Queue, form: ModelForm[Queue], change: bool) -> None:
        """Set the limit, or lift it."""
        limiting.limit(obj, form.cleaned_data["waiting_limit"], by=outcome_of_action.operator(request))

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list, with what waits in each queue."""
        changelist = super().get_changelist_instance(request)
        loads = {load.name: load for load in queue_loads()}
        for queue in changelist.result_list:
            queue.load = loads.get(queue.name)
        return changelist

    @admin.display(boolean=True)
    def paused(self, queue: Queue) -> bool:
        """Whether it starts nothing."""
        return queue.is_paused

    @admin.display
    def waiting(self, queue: Any) -> str:
        """How many tasks could be started now."""
        return queue.load.shown_waiting if queue.load else "-"

    @admin.display
    def later(self, queue: Any) -> str:
        """How many tasks wait for their time."""
        return queue.load.shown_later if queue.load else "-"

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
