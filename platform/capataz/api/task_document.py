"""A task as clients see it. Built by hand: lists of two hundred are asked for every two seconds."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.utils import timezone

from capataz import sensitive
from capataz.api.wire import milliseconds, moment
from capataz.handlers import LOG_LEVELS, declared_sensitive
from capataz.lifecycle import waiting_for
from capataz.models import Attempt, LogLine, Task, Worker
from capataz.states import State

# Of a longer history only the newest attempts are shown.
MOST_ATTEMPTS = 1000


def of_one(task: Task, *, revealed: bool = False) -> dict[str, Any]:
    """The task with its attempts: ``schemas.TaskOut``. Secrets are masked unless ``revealed``."""
    attempts = Attempt.objects.filter(task_id=task.pk)
    latest = list(attempts.order_by("-id")[:MOST_ATTEMPTS])[::-1]
    first = 1 if len(latest) < MOST_ATTEMPTS else attempts.count() - MOST_ATTEMPTS + 1
    names = _names_of([task.worker_id, *(attempt.worker_id for attempt in latest)])
    last = latest[-1] if latest else None
    cards = [_card(number, attempt, names) for number, attempt in enumerate(latest, first)]
    shown = _opened(task) if revealed else {}
    return {
        **_document(task, last, names),
        **shown,
        "obstacle": waiting_for.obstacle(task),
        **_policy(task),
        "attempts": cards,
    }


def of_many(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The tasks without their attempts: ``schemas.TaskItem`` each, with three statements for all."""
    last = _last_attempts(tasks)
    names = _names_of([*(task.worker_id for task in tasks), *(each.worker_id for each in last.values())])
    return [_document(task, last.get(task.pk), names) for task in tasks]


def _document(task: Task, last: Attempt | None, names: dict[int, str]) -> dict[str, Any]:
    holder = task.worker_id if task.worker_id is not None else last.worker_id if last else None
    worker = names.get(holder) if holder is not None else None
    declared = declared_sensitive(task.type)
    return {
        "id": str(task.pk),
        "key": task.key,
        "type": task.type,
        "status": task.status,
        "state": task.state,
        "priority": task.priority,
        "queue": task.queue,
        "data": sensitive.masked(task.payload, declared, sensitive.PAYLOAD),
        "result": sensitive.masked(task.result, declared, sensitive.RESULT),
        "error": task.error,
        "retries": _retries(task),
        "losses": task.losses,
        "workerLosses": task.worker_losses,
        "snoozes": task.snoozes,
        "worker": worker,
        "assignedTo": worker,
        "createdAt": moment(task.created_at),
        "runAt": moment(task.run_at),
        "startedAt": moment(task.started_at),
        "finishedAt": moment(task.finished_at),
        "executionTimeMs": _execution_time(task, last),
        "waitMs": milliseconds(task.started_at - task.created_at) if task.started_at else None,
        "progress": task.progress,
        "progressMessage": task.progress_message,
        "etaMs": _eta(task),
        "replayOf": str(task.replay_of) if task.replay_of else None,
        "cause": task.cause,
        "maxAttempts": task.max_attempts,
    }


def _eta(task: Task) -> int | None:
    """What is left, if the rest takes as long as what is done: a guess, and none before the first percent."""
    if task.state != State.RUNNING or task.started_at is None or not task.progress:
        return None
    return milliseconds((timezone.now() - task.started_at) * (100 - task.progress) / task.progress)


def _opened(task: Task) -> dict[str, Any]:
    return {
        "data": sensitive.opened(task.payload, sensitive.PAYLOAD, task.pk),
        "result": sensitive.opened(task.result, sensitive.RESULT, task.pk),
    }


def of_log(lines: Sequence[LogLine]) -> dict[str, Any]:
    """Lines of a task's log: ``schemas.LogPage``."""
    items = [
        {
            "id": line.pk,
            "at": moment(line.at),
            "run": line.run,
            "level": _level(line.level),
            "logger": line.logger,
            "message": line.message,
        }
        for line in lines
    ]
    return {"items": items, "nextCursor": lines[-1].pk if lines else None}


def _level(number: int) -> str:
    """The word for a level of logging; those in between count as the one below."""
    return [name for name, level in LOG_LEVELS.items() if level <= max(number, logging.DEBUG)][-1]


def _policy(task: Task) -> dict[str, Any]:
    return {"backoff": json.loads(task.backoff) if task.backoff else None, "keep": task.keep}


def _retries(task: Task) -> int:
    """Attempts beyond the first; one that runs now counts from its start."""
    return max(0, task.attempts + (task.state == State.RUNNING) - 1)


def _execution_time(task: Task, last: Attempt | None) -> int | None:
    if task.state == State.RUNNING:
        return None
    if last is not None:
        return _run_ms(last)
    # Its attempts are past their retention. Any other end may have come long after the run.
    return milliseconds(task.run_time) if task.state == State.SUCCEEDED else None


def _card(number: int, attempt: Attempt, names: dict[int, str]) -> dict[str, Any]:
    return {
        "number": number,
        "run": attempt.run,
        "outcome": attempt.outcome,
        "worker": names.get(attempt.worker_id),
        "workerId": attempt.worker_id,
        "startedAt": moment(attempt.started_at),
        "finishedAt": moment(attempt.finished_at),
        "runMs": _run_ms(attempt),
        "error": attempt.error,
        "traceback": attempt.traceback,
    }


def _run_ms(attempt: Attempt) -> int | None:
    return milliseconds(attempt.finished_at - attempt.started_at) if attempt.started_at else None


def _last_attempts(tasks: Sequence[Task]) -> dict[uuid.UUID, Attempt]:
    tried = [task for task in tasks if task.started_at is not None]
    if not tried:
        return {}
    # Attempts lie in a partition for each day: none is older than the oldest of these tasks.
    oldest = min(task.created_at for task in tried)
    attempts = Attempt.objects.filter(task_id__in=[task.pk for task in tried], finished_at__gte=oldest)
    newest = attempts.order_by("task_id", "-id").distinct("task_id").defer("error", "traceback")
    return {attempt.task_id: attempt for attempt in newest}


def _names_of(ids: Iterable[int | None]) -> dict[int, str]:
    wanted = {each for each in ids if each is not None}
    return dict(Worker.objects.filter(pk__in=wanted).values_list("pk", "name")) if wanted else {}
