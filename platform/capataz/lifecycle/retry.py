"""Retry: a person asks for a task that ended without success to be run again."""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.db.models import Case, F, When
from django.db.models.functions import Now

from capataz import database
from capataz.errors import IllegalMove
from capataz.lifecycle import notes, task_results, wakeup
from capataz.models import Task
from capataz.states import State

RETRYABLE = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


def retry(task: Task, *, by: str = "") -> Task:
    """Queue the task again, with all its attempts ahead of it; its history stays.

    Raises IllegalMove unless it is dead, cancelled or expired.
    """
    with transaction.atomic():
        database.be_impatient()
        moved = _queue_again(task)
        if not moved:
            task.refresh_from_db()
            raise IllegalMove(f"task {task} cannot be retried: it is {task.state}")
        task_results.forget([task.pk])
        notes.tell("task.retried", task=task, by=by)
        transaction.on_commit(wakeup.ring)
    task.refresh_from_db()
    return task


def _queue_again(task: Task) -> int:
    """How many tasks were moved. Raises IllegalMove if another task has this one's unique key by now."""
    ended = Task.objects.filter(pk=task.pk, state__in=RETRYABLE)
    is_over = When(unique_until__lte=Now(), then=None)
    try:
        with transaction.atomic():
            return ended.update(
                unique_key=Case(is_over, default=F("unique_key")),
                state=State.QUEUED,
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
