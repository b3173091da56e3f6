"""Retry: a person asks for a task that ended without success to be run again."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Now

from capataz import database
from capataz.errors import IllegalMove
from capataz.lifecycle import notes, settling, task_results, wakeup
from capataz.models import Dependency, OnFailure, Task
from capataz.states import State

RETRYABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})

# A parent without which its child may not run has ended without success.
_FAILED = Q(on_failure=OnFailure.CANCEL, outcome__isnull=False) & ~Q(outcome=State.SUCCEEDED)


def retry(task: Task, *, by: str = "") -> Task:
    """Queue the task again, with all its attempts ahead of it; its history stays.

    One of a workflow waits for those of its parents that have not ended yet. What was cancelled for it comes
    back with it.

    Raises IllegalMove unless it is dead, cancelled or expired, and for a task that may not run before one of
    its parents has been retried.
    """
    with transaction.atomic():
        database.be_impatient()
        moved = _queue_again(task)
        if not moved:
            task.refresh_from_db()
            _refuse_before_parents(task)
            raise IllegalMove(f"task {task} cannot be retried: it is {task.state}")
        task_results.forget([task.pk])
        notes.tell("task.retried", task=task, by=by)
        transaction.on_commit(wakeup.ring)
    task.refresh_from_db()
    return task


def _queue_again(task: Task) -> int:
    """How many tasks were moved. Raises IllegalMove if another task has this one's unique key by now."""
    ended = Task.objects.filter(pk=task.pk, state__in=RETRYABLE)
    state: Any = State.QUEUED
    settled: dict[str, Any] = {}
    if task.workflow_id is not None:
        ended = ended.exclude(Exists(_edges().filter(_FAILED)))
        open_ones = Exists(_edges().filter(outcome__isnull=True))
        state = Case(When(open_ones, then=Value(State.BLOCKED)), default=Value(State.QUEUED))
        settled = {"settled_at": settling.NEVER}
    is_over = When(unique_until__lte=Now(), then=None)
    try:
        with transaction.atomic():
            return ended.update(
                unique_key=Case(is_over, default=F("unique_key")),
                state=state,
                **settled,
                attempts=0,
                losses=0,
                worker_losses=0,
                orphaned=0,
                given_back=0,
                snoozes=0,
                run_at=Now(),
                finished_at=None,
                expires_at=None,
                cancel_requested_at=None,
                error=None,
                cause=None,
                progress=None,
                progress_message=None,
            )
    except IntegrityError:
        raise IllegalMove(f"task {task} cannot be retried: another task holds its unique key") from None


def _edges() -> QuerySet[Dependency, Any]:
    return Dependency.objects.filter(child_id=OuterRef("pk"))


def _refuse_before_parents(task: Task) -> None:
    failed = Dependency.objects.filter(_FAILED, child_id=task.pk)
    if task.state in RETRYABLE and failed.exists():
        names = ", ".join(failed.values_list("name", flat=True)[:5])
        raise IllegalMove(f"task {task} waits for {names}, which did not succeed: retry that first")
