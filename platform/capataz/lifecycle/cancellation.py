"""Cancellation: stopping a task for good."""

from __future__ import annotations

import contextlib

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from capataz import database
from capataz.errors import IllegalMove
from capataz.lifecycle import notes, task_results
from capataz.lifecycle.task_results import Record
from capataz.models import Task
from capataz.states import HELD, UNFINISHED, State


def cancel(task: Task, *, reason: str = "", by: str = "") -> Task:
    """Cancel a task. One that no worker holds is cancelled at once; a held one is stopped by its worker,
    within about a second if it has not started, else as soon as its handler lets go or is killed.

    A task that is cancelled already is returned as it is. Raises IllegalMove if it has ended otherwise.
    """
    with transaction.atomic():
        database.be_impatient()
        if _cancel_waiting(task):
            task_results.record(database.driver(), [Record(task.pk)])
            notes.tell("task.cancelled", task=task, because=reason, by=by)
        elif _ask_worker(task):
            notes.tell("task.cancelRequested", task=task, because=reason, by=by)
    task.refresh_from_db()
    if task.state in UNFINISHED and task.cancel_requested_at is None:
        return cancel(task, reason=reason, by=by)  # it moved between the two statements
    if task.state not in (*UNFINISHED, State.CANCELLED):
        raise IllegalMove(f"task {task} cannot be cancelled: it is {task.state}")
    return task


def _cancel_waiting(task: Task) -> int:
    waiting = Task.objects.filter(pk=task.pk, state__in=UNFINISHED - HELD)
    return waiting.update(
        state=State.CANCELLED, finished_at=Now(), run_at=None, released_at=None, verify_at=None, publishes=0
    )


def _ask_worker(task: Task) -> int:
    held = Task.objects.filter(Q(cancel_requested_at__isnull=True), pk=task.pk, state__in=HELD)
    return held.update(cancel_requested_at=Now())


def cancel_named(names: list[str], *, by: str) -> set[str]:
    """Cancel the tasks of these ids; returns the ids that are tasks of ours, ended ones included."""
    found = set()
    for name in names:
        task = Task.objects.called(name).first()
        if task is not None:
            found.add(name)
            with contextlib.suppress(IllegalMove):
                cancel(task, by=by)
    return found
