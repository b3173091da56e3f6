"""Bulk actions: the same verb for every task of a selection, a batch at a time."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from capataz.errors import CapatazError
from capataz.lifecycle import cancellation, discarding, replay, retry
from capataz.lifecycle.selection import Selection
from capataz.models import Task
from capataz.models.task import TaskQuerySet
from capataz.states import FINAL, UNFINISHED, State

Verb = Callable[[Task, str, str], object]

BATCH = 100
MOST_REFUSALS = 100  # told one by one; the others are counted


class Action(StrEnum):
    """What may be done to many tasks at once."""

    RETRY = "retry"
    REPLAY = "replay"
    CANCEL = "cancel"
    DISCARD = "discard"


# Which tasks an action is for: all others of a selection are left alone.
MEANT_FOR: dict[Action, frozenset[State]] = {
    Action.RETRY: retry.RETRYABLE,
    Action.REPLAY: FINAL,
    Action.CANCEL: UNFINISHED,
    Action.DISCARD: frozenset({State.DEAD}),
}


@dataclass
class Done:
    """What a bulk action came to."""

    done: int = 0
    refused: int = 0
    refusals: list[dict[str, str]] = field(default_factory=list)

    def refuse(self, task_id: uuid.UUID, reason: str) -> None:
        """Count a task that could not be acted on, and tell why."""
        self.refused += 1
        if len(self.refusals) < MOST_REFUSALS:
            self.refusals.append({"id": str(task_id), "reason": reason})


def meant(action: Action, selection: Selection) -> TaskQuerySet:
    """The tasks of the selection that this action is for."""
    return selection.tasks().filter(state__in=MEANT_FOR[action])


def act(
    action: Action,
    selection: Selection,
    *,
    name: str,
    by: str,
    per_second: float | None = None,
    report: Callable[[Done], None] = lambda done: None,
) -> Done:
    """Do ``action`` to all that it is meant for, oldest id first, and call ``report`` after each batch.

    Every task is acted on in a transaction of its own. Beginning again under the same ``name`` goes on: what
    is done is no longer meant, and a replay has a key made of the name.
    """
    done = Done()
    for ids in _batches(meant(action, selection)):
        began = time.monotonic()
        for task_id in ids:
            _act_on(_VERBS[action], task_id, name, by, done)
        report(done)
        if per_second:
            time.sleep(max(0.0, len(ids) / per_second - (time.monotonic() - began)))
    return done


def _batches(tasks: TaskQuerySet) -> Iterator[list[uuid.UUID]]:
    after = uuid.UUID(int=0)
    while ids := list(tasks.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:BATCH]):
        yield ids
        after = ids[-1]


def _act_on(verb: Verb, task_id: uuid.UUID, name: str, by: str, done: Done) -> None:
    task = Task.objects.filter(pk=task_id).first()
    if task is None:
        return
    try:
        verb(task, name, by)
        done.done += 1
    except CapatazError as refusal:
        done.refuse(task_id, str(refusal))


_VERBS: dict[Action, Verb] = {
    Action.RETRY: lambda task, name, by: retry.retry(task, by=by),
    Action.CANCEL: lambda task, name, by: cancellation.cancel(task, reason=name, by=by),
    Action.DISCARD: lambda task, name, by: discarding.discard(task, reason=name, by=by),
    Action.REPLAY: lambda task, name, by: replay.replay(task, key=f"{name}:{task.pk}", by=by),
}
