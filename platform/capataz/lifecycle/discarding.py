"""Discarding: a person decides that a dead letter needs no further care."""

from __future__ import annotations

from django.db import transaction

from capataz import database
from capataz.errors import IllegalMove
from capataz.lifecycle import notes, settling
from capataz.models import Task
from capataz.states import State


def discard(task: Task, *, reason: str = "", by: str = "") -> Task:
    """Take the task out of the dead letters: it is cancelled, keeps its history, and may still be retried.

    One that is cancelled already is returned as it is. Raises IllegalMove unless it is dead.
    """
    with transaction.atomic():
        database.be_impatient()
        if Task.objects.filter(pk=task.pk, state=State.DEAD).update(state=State.CANCELLED):
            Task.objects.filter(pk=task.pk, workflow_id__isnull=False).update(settled_at=settling.NEVER)
            notes.tell("task.discarded", task=task, because=reason, by=by)
    task.refresh_from_db()
    if task.state != State.CANCELLED:
        raise IllegalMove(f"task {task} cannot be discarded: it is {task.state}, and not dead")
    return task
