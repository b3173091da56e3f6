"""Parents: what a task that has waited for others is given of their results, when it is run."""

from __future__ import annotations

import json
import uuid
from typing import Any

from capataz import sensitive
from capataz.handlers import Handler, Parent, RunningTask
from capataz.models import Dependency, Feeds, OnFailure, Task
from capataz.states import State

# The name under which a payload without declared fields is given what is no object.
PREVIOUS = "previous"


def of(task_id: uuid.UUID) -> list[Parent]:
    """The parents of this task, in the order in which they were named; without those whose failure it
    ignores."""
    dependencies = list(Dependency.objects.filter(child_id=task_id).order_by("position", "id"))
    tasks = Task.objects.in_bulk([each.parent_id for each in dependencies])
    found = [_parent(each, tasks.get(each.parent_id)) for each in dependencies]
    return [
        parent
        for each, parent in zip(dependencies, found, strict=True)
        if parent.state == State.SUCCEEDED or each.on_failure != OnFailure.IGNORE
    ]


def _parent(dependency: Dependency, task: Task | None) -> Parent:
    state = (task.state if task else dependency.outcome) or "gone"
    succeeded = task is not None and task.state == State.SUCCEEDED
    result = sensitive.opened(task.result, sensitive.RESULT, task.pk) if task and succeeded else None
    error = task.error if task else None
    return Parent(dependency.parent_id, dependency.name, state, result, error, dependency.feeds)


def fed(handler: Handler[Any], text: str | bytes, running: RunningTask) -> str | bytes:
    """The payload of this task, with what its parents' results give to it."""
    one = [each for each in running.parents if each.feeds == Feeds.ONE]
    many = [each for each in running.parents if each.feeds == Feeds.LIST]
    if not one and not many:
        return text
    value = [each.result for each in many] if many else one[-1].result
    return json.dumps(with_previous(handler, json.loads(text), value), ensure_ascii=False)


def with_previous(handler: Handler[Any], payload: Any, value: Any) -> Any:
    """The payload that a task is given after another whose result is ``value``.

    An object gives it whatever it does not say itself. Anything else becomes the first field that the
    payload's model declares and that it lacks, as Celery makes it the first argument; without declared
    fields it is called ``previous``. None, which says nothing, gives nothing.
    """
    if handler.is_durable:  # exactly what Celery does
        return {**payload, "args": [value, *payload.get("args", [])]}
    if value is None or not isinstance(payload, dict):
        return payload
    if isinstance(value, dict):
        known = handler.fields()
        given = value if known is None else {name: each for name, each in value.items() if name in known}
        return {**given, **payload}
    free = [name for name in handler.fields() or [PREVIOUS] if name not in payload]
    return {**payload, free[0]: value} if free else payload
