"""Tasks in the admin: look, search, cancel, retry."""

from __future__ import annotations

import json
import logging
from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString

from capataz import sensitive
from capataz.admin import outcome_of_action
from capataz.admin.filters import PriorityFilter, QueueFilter, StateFilter, TypeFilter
from capataz.admin.paging import ReadOnlyAdmin
from capataz.errors import CannotDecrypt
from capataz.handlers import declared_sensitive
from capataz.lifecycle import cancellation, discarding, notes, replay, retry, waiting_for
from capataz.models import Attempt, LogLine, Role, Task, Worker
from capataz.models.membership import role_of

MOST_ATTEMPTS = 100
MOST_LINES = 200

# The parts of a task's page.
IDENTITY = ("id", "key", "type", "badge", "obstacle", "queue", "priority", "worker_name", "submitted_by")
TIMES = (
    *("created_at", "run_at", "expires_at", "started_at", "finished_at", "ran_for"),
    *("cancel_requested_at", "soft_time_limit", "time_limit"),
)
WORK = (
    "secrets",
    "shown_payload",
    "progress",
    "progress_message",
    "shown_result",
    "shown_error",
    "cause",
    "replay_of",
)
ATTEMPTS = (
    "history",
    "log",
    "attempts",
    "max_attempts",
    "losses",
    "worker_losses",
    "orphaned",
    "given_back",
    "snoozes",
    "backoff",
    "keep",
)
DISPATCH = ("run", "released_at", "verify_at", "publishes")


@admin.register(Task)
class TaskAdmin(ReadOnlyAdmin):
    """Every task; its row is changed by verbs only."""

    list_display = (
        "short_id", "type", "badge", "priority", "queue", "tries", "worker_name", "created_at", "ran_for",
    )  # fmt: skip
    list_display_links = ("short_id",)
    list_filter = (StateFilter, TypeFilter, QueueFilter, PriorityFilter)
    ordering = ("-id",)
    sortable_by = ()  # only the order by id has an index
    search_fields = ("id",)
    search_help_text = "The exact id of a task, or the id that its client gave it."
    actions = ("cancel", "retry", "replay", "discard")
    fieldsets = (
        (None, {"fields": IDENTITY}),
        ("Times", {"fields": TIMES}),
        ("Work", {"fields": WORK}),
        ("Attempts", {"fields": ATTEMPTS}),
        ("Dispatch", {"fields": DISPATCH, "classes": ("collapse",)}),
    )
    readonly_fields = (
        "id",
        "key",
        "created_at",
        "badge",
        "obstacle",
        "worker_name",
        "ran_for",
        "secrets",
        "shown_payload",
        "shown_result",
        "shown_error",
        "history",
        "log",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        """Tasks with the name of their worker, without their large columns in lists."""
        name = Worker.objects.filter(pk=OuterRef("worker_id")).values("name")
        tasks: QuerySet[Task] = super().get_queryset(request)
        return tasks.annotate(worker_now=Subquery(name)).defer("payload", "result", "error")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Task], search_term: str
    ) -> tuple[QuerySet[Task], bool]:
        """The one task of this id: no LIKE, which would read the whole table."""
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(pk__in=Task.objects.called(term).values("pk")), False

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Task | None:
        """The task, with its secrets if an admin asks for them; that leaves an event."""
        task: Task | None = super().get_object(request, object_id, from_field)
        if task is None or role_of(request.user) != Role.ADMIN:
            return task
        task.may_be_revealed = True  # type: ignore[attr-defined]
        if request.method == "GET" and "reveal" in request.GET:
            with transaction.atomic():
                notes.tell("task.revealed", task=task, by=outcome_of_action.operator(request))
                task.revealed = True  # type: ignore[attr-defined]
        return task

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether this person may cancel and retry."""
        return request.user.has_perm("capataz.change_task")

    @admin.action(description="Cancel the selected tasks", permissions=["operate"])
    def cancel(self, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        """Stop them for good."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(
            self,
            request,
            tasks,
            lambda task: cancellation.cancel(task, reason="admin", by=by),
            "cancelled or asked to stop",
        )

    @admin.action(description="Retry the selected tasks", permissions=["operate"])
    def retry(self, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        """Queue them again."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(self, request, tasks, lambda task: retry.retry(task, by=by), "queued again")

    @admin.action(description="Replay the selected tasks, as new ones", permissions=["operate"])
    def replay(self, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        """Do ended tasks again, each as a new one."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(self, request, tasks, lambda task: replay.replay(task, by=by), "replayed")

    @admin.action(description="Discard the selected dead letters", permissions=["operate"])
    def discard(self, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        """Nobody needs to look at them again."""
        by = outcome_of_action.operator(request)
        outcome_of_action.apply(
            self,
            request,
            tasks,
            lambda task: discarding.discard(task, reason="admin", by=by),
            "taken out of the dead letters",
        )

    @admin.display(description="ID")
    def short_id(self, task: Task) -> SafeString:
        """The last digits, which differ; the first ones tell the time."""
        return format_html('<code class="capataz-id" title="{}">…{}</code>', task.pk, str(task.pk)[-8:])

    @admin.display(description="state", ordering=None)
    def badge(self, task: Task) -> SafeString:
        """The state in its colour."""
        return format_html('<span class="capataz-state {}">{}</span>', task.state, task.get_state_display())

    @admin.display(description="obstacle")
    def obstacle(self, task: Task) -> str:
        """What keeps it from being started."""
        return waiting_for.obstacle(task) or "-"

    @admin.display(description="attempts")
    def tries(self, task: Task) -> str:
        """Attempts made, of those allowed."""
        return f"{task.attempts} of {task.max_attempts}"

    @admin.display(description="worker")
    def worker_name(self, task: Task) -> str:
        """Who holds it now."""
        return getattr(task, "worker_now", None) or "-"

    @admin.display(description="run time")
    def ran_for(self, task: Task) -> str:
        """How long the last attempt ran."""
        return "-" if task.run_time is None else f"{task.run_time.total_seconds():.3f} s"

    @admin.display(description="secrets")
    def secrets(self, task: Task) -> SafeString | str:
        """Whether they are masked, and for whom it may be the way to see them."""
        if getattr(task, "revealed", False):
            return "revealed, and noted in the events"
        if getattr(task, "may_be_revealed", False):
            return format_html('masked; <a href="?reveal=1">reveal them</a>, which is noted')
        return "masked"

    @admin.display(description="payload")
    def shown_payload(self, task: Task) -> SafeString:
        """The payload, indented."""
        return _json(_shown(task, task.payload, sensitive.PAYLOAD))

    @admin.display(description="result")
    def shown_result(self, task: Task) -> SafeString:
        """The result, indented."""
        return _json(_shown(task, task.result, sensitive.RESULT))

    @admin.display(description="error")
    def shown_error(self, task: Task) -> SafeString:
        """Why the last attempt failed."""
        return format_html("<pre>{}</pre>", task.error or "-")

    @admin.display(description="log")
    def log(self, task: Task) -> SafeString:
        """The latest lines that its handler has logged."""
        lines = list(LogLine.objects.filter(task_id=task.pk).order_by("-pk")[:MOST_LINES])[::-1]
        return format_html("<pre>{}</pre>", "\n".join(map(_line, lines)) or "-")

    @admin.display(description="attempts")
    def history(self, task: Task) -> SafeString:
        """The latest attempts."""
        attempts = list(Attempt.objects.filter(task_id=task.pk).order_by("-id")[:MOST_ATTEMPTS])
        names = dict(
            Worker.objects.filter(pk__in={each.worker_id for each in attempts}).values_list("pk", "name")
        )
        cards = [{"attempt": each, "worker": names.get(each.worker_id, each.worker_id)} for each in attempts]
        return render_to_string("admin/capataz/task/attempts.html", {"cards": cards})


def _line(line: LogLine) -> str:
    return f"{line.at:%Y-%m-%d %H:%M:%S.%f} {logging.getLevelName(line.level)} {line.logger}: {line.message}"


def _shown(task: Task, value: Any, column: str) -> Any:
    if not getattr(task, "revealed", False):
        return sensitive.masked(value, declared_sensitive(task.type), column)
    try:
        return sensitive.opened(value, column, task.pk)
    except CannotDecrypt as error:
        return f"This cannot be shown: {error}."


def _json(value: Any) -> SafeString:
    return format_html("<pre>{}</pre>", json.dumps(value, indent=2, ensure_ascii=False))
