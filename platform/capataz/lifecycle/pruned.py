"""What can still be said of a task that retention has deleted.

A task with a client's id leaves a row. Of the others, their attempts and events are still there: those of a
day go when no outcome is kept for so long. Of what is older than that, the time in an id of our own tells.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings

from capataz import handlers
from capataz.database import database_now
from capataz.models import Attempt, Event, Pruned
from capataz.states import FINAL, State

_ENDS = {"succeeded": State.SUCCEEDED, "cancelled": State.CANCELLED}
_EVENTS = {f"task.{state.value}": state for state in FINAL}


@dataclass(frozen=True)
class Trace:
    """That there was such a task: how and when it ended, as far as that is known, and why it is gone."""

    rule: str
    state: State | None = None
    finished_at: datetime | None = None
    pruned_at: datetime | None = None


def trace(name: str) -> Trace | None:
    """What is left of the deleted task of this id; None if none is known."""
    row = Pruned.objects.called(name).first()
    if row is not None:
        state = State(row.state)
        return Trace(_rule(state, row.type), state, row.finished_at, row.pruned_at)
    try:
        task_id = uuid.UUID(name)
    except ValueError:
        return None
    return _of_events(task_id) or _of_attempts(task_id) or _of_id(task_id)


def _of_events(task_id: uuid.UUID) -> Trace | None:
    last = Event.objects.filter(task_id=task_id, kind__in=_EVENTS).order_by("-id").first()
    if last is None:
        return None
    state = _EVENTS[last.kind]
    return Trace(_rule(state, last.detail.get("type")), state, last.at)


def _of_attempts(task_id: uuid.UUID) -> Trace | None:
    last = Attempt.objects.filter(task_id=task_id).order_by("-id").first()
    if last is None:
        return None
    state = _ENDS.get(last.outcome)
    return Trace(_rule(state, None), state, last.finished_at)


def _of_id(task_id: uuid.UUID) -> Trace | None:
    """Of an id of our own: it is older than anything that is kept."""
    if task_id.version != 7:
        return None
    made = datetime.fromtimestamp((task_id.int >> 80) / 1000, UTC)
    longest = max(_days(state) for state in FINAL)
    if made + timedelta(days=longest) > database_now():
        return None
    return Trace(f"no ended task is kept for longer than {longest:g} days")


def _rule(state: State | None, task_type: str | None) -> str:
    if state is None:
        return "ended tasks are kept for a time only"
    said = f"{state.value} tasks are kept for {_days(state):g} days, unless they or their type say otherwise"
    if task_type and handlers.is_registered(task_type):
        rule = handlers.find(task_type).keep.rules.get(state.value, {})
        limits = [f"for {rule['age']:g} seconds"] if "age" in rule else []
        limits += [f"the newest {rule['count']}"] if "count" in rule else []
        if limits:
            said = f"of the type {task_type}, {state.value} tasks are kept {' and '.join(limits)}"
    return said


def _days(state: State) -> float:
    return float(getattr(settings, f"KEEP_{state.name}_DAYS"))
