"""Waiting: what somebody does who submits tasks and wants their results.

The rows are looked at: soon at first, twice a second in the end, all tasks of a wait at once and each look in
a transaction of its own. Each function has a twin for coroutines whose name begins with an ``a``.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypedDict

from asgiref.sync import sync_to_async
from django.db import connection

from capataz import sensitive
from capataz.errors import TaskError
from capataz.lifecycle.submission import Submission, asked_on_the_wire, submit_many
from capataz.models import Task
from capataz.states import FINAL, State

# Seconds between two looks: the first, the longest, and by how much it grows from one to the next.
SOONEST, LATEST, GROWTH = 0.01, 0.5, 1.4

Named = Task | uuid.UUID | str


class Settled(TypedDict):
    """What became of several tasks: the results of those that succeeded, and the errors of the others."""

    successful: list[Any]
    failed: list[TaskError]


def wait(task: Named, *, timeout: float | None = None) -> Any:
    """The result of this task, as soon as it has succeeded.

    Raises TaskError if it ends otherwise, TimeoutError if it has not ended after ``timeout`` seconds (it
    goes on), and RuntimeError inside a transaction, which would hide its end.
    """
    return _value(_settle([task], timeout)[0])


def gather(*tasks: Named, timeout: float | None = None) -> list[Any]:
    """The results of these tasks, in their order. Raises as ``wait``, for the first that did not succeed."""
    return [_value(end) for end in _settle(tasks, timeout)]


def gather_settled(*tasks: Named, timeout: float | None = None) -> Settled:
    """What became of these tasks, each list in their order. Raises TimeoutError if one has not ended."""
    return _settled(_settle(tasks, timeout))


def process_task(
    task: Submission | Mapping[str, Any], priority: int | str | None = None, *, timeout: float | None = None
) -> Any:
    """Submit a task, and wait for its result.

    ``task`` is a Submission, or an object as the REST API takes it: ``type``, ``data``, ``id``, options.
    Raises what ``submit`` and ``wait`` raise.
    """
    _refuse_transaction()
    return wait(_submit(task, priority), timeout=timeout)


async def await_result(task: Named, *, timeout: float | None = None) -> Any:
    """``wait``, for coroutines."""
    return _value((await _asettle([task], timeout))[0])


async def agather(*tasks: Named, timeout: float | None = None) -> list[Any]:
    """``gather``, for coroutines."""
    return [_value(end) for end in await _asettle(tasks, timeout)]


async def agather_settled(*tasks: Named, timeout: float | None = None) -> Settled:
    """``gather_settled``, for coroutines."""
    return _settled(await _asettle(tasks, timeout))


async def aprocess_task(
    task: Submission | Mapping[str, Any], priority: int | str | None = None, *, timeout: float | None = None
) -> Any:
    """``process_task``, for coroutines."""
    task_id = await sync_to_async(_submit)(task, priority)
    return await await_result(task_id, timeout=timeout)


def _submit(task: Submission | Mapping[str, Any], priority: int | str | None) -> uuid.UUID:
    asked = task if isinstance(task, Submission) else asked_on_the_wire(task)
    if priority is not None:
        asked = replace(asked, priority=priority)
    [task_id] = submit_many([asked])
    return task_id


def _value(end: Any) -> Any:
    if isinstance(end, TaskError):
        raise end
    return end


def _settled(ends: Iterable[Any]) -> Settled:
    made: Settled = {"successful": [], "failed": []}
    for end in ends:
        made["failed" if isinstance(end, TaskError) else "successful"].append(end)
    return made


class _Wait:
    """Some tasks that somebody waits for, and what is known of their ends."""

    def __init__(self, tasks: Iterable[Named], timeout: float | None) -> None:
        self._names = [str(task.pk) if isinstance(task, Task) else str(task) for task in tasks]
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ids: dict[str, uuid.UUID] = {}
        self._ends: dict[str, Any] = {}
        self._pause = SOONEST

    def look(self) -> bool:
        """Whether all have ended. Raises TimeoutError when it has taken too long."""
        _refuse_transaction()
        for name in set(self._names) - self._ids.keys() - self._ends.keys():
            self._find(name)
        open_ids = {task_id: name for name, task_id in self._ids.items() if name not in self._ends}
        rows = Task.objects.filter(pk__in=open_ids).values_list("pk", "state")
        states = dict(rows)
        ended = [task_id for task_id, state in states.items() if state in FINAL]
        for task in Task.objects.filter(pk__in=ended):
            if task.state in FINAL:  # a person may have had it retried between the two looks
                self._ends[open_ids[task.pk]] = _end(task)
        for task_id, name in open_ids.items():
            if task_id not in states:
                self._ends[name] = TaskError(name, None, "there is no such task, or no longer")
        if len(self._ends) == len(set(self._names)):
            return True
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimeoutError(f"{len(set(self._names)) - len(self._ends)} tasks have not ended in time")
        return False

    def _find(self, name: str) -> None:
        try:
            self._ids[name] = uuid.UUID(name)
            return
        except ValueError:
            found = Task.objects.called(name).values_list("pk", flat=True).first()
        if found is None:
            self._ends[name] = TaskError(name, None, "there is no such task")
        else:
            self._ids[name] = found

    def pause(self) -> float:
        """Seconds until the next look."""
        pause, self._pause = self._pause, min(self._pause * GROWTH, LATEST)
        if self._deadline is not None:
            pause = min(pause, max(0.0, self._deadline - time.monotonic()))
        return pause

    def ends(self) -> list[Any]:
        """The result, or the error, of each task."""
        return [self._ends[name] for name in self._names]


def _end(task: Task) -> Any:
    if task.state == State.SUCCEEDED:
        return sensitive.opened(task.result, sensitive.RESULT, task.pk)
    return TaskError(str(task.pk), task.state, task.error or task.state)


def _settle(tasks: Iterable[Named], timeout: float | None) -> list[Any]:
    waiting = _Wait(tasks, timeout)
    while not waiting.look():
        time.sleep(waiting.pause())
    return waiting.ends()


async def _asettle(tasks: Iterable[Named], timeout: float | None) -> list[Any]:
    waiting = _Wait(tasks, timeout)
    look: Callable[[], Any] = sync_to_async(waiting.look)
    while not await look():
        await asyncio.sleep(waiting.pause())
    return waiting.ends()


def _refuse_transaction() -> None:
    if connection.in_atomic_block:
        raise RuntimeError(
            "wait after the transaction: until it commits, its tasks are not there for workers"
        )
