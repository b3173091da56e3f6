"""Replay: doing an ended task again as a new one, with its payload or with an edited one."""

from __future__ import annotations

import json
from typing import Any

from django.db import transaction

from capataz import sensitive
from capataz.errors import IllegalMove
from capataz.lifecycle import notes
from capataz.lifecycle.submission import submit
from capataz.models import Task
from capataz.states import FINAL, State

AS_IT_WAS = object()


def replay(task: Task, *, data: Any = AS_IT_WAS, key: str | None = None, by: str = "") -> Task:
    """Submit the task again, linked to the old one, which stays as it is.

    The payload is checked as that of any submission. With a ``key``, replaying twice is replaying once.

    Raises IllegalMove unless the task has ended, and whatever ``submit`` raises.
    """
    if task.state not in FINAL:
        raise IllegalMove(f"task {task} cannot be replayed: it is {task.state}, and may still end well")
    if data is AS_IT_WAS:
        data = sensitive.opened(task.payload, sensitive.PAYLOAD, task.pk)
    with transaction.atomic():
        new = submit(
            task.type,
            data,
            queue=task.queue,
            priority=task.priority,
            max_attempts=task.max_attempts,
            soft_time_limit=task.soft_time_limit,
            time_limit=task.time_limit,
            key=key,
            submitted_by=by or None,
            backoff=json.loads(task.backoff) if task.backoff else None,
            remove_on_complete=(task.keep or {}).get(State.SUCCEEDED),
            remove_on_fail=(task.keep or {}).get(State.DEAD),
            replay_of=task.pk,
        )
        if new.replay_of != task.pk:
            raise IllegalMove(f"task {task} cannot be replayed: the task {new.pk} holds its unique key")
        notes.tell("task.replayed", task=task, by=by, replay=str(new.pk))
    return new
