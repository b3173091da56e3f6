"""Execution: claiming tasks for a worker and writing down how their runs ended."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from capataz.database import Connection
from capataz.lifecycle import circuit_breaking, task_results
from capataz.lifecycle.task_results import Record
from capataz.models import Outcome
from capataz.policy import Retry
from capataz.sql import statement
from capataz.states import State

# A task that stopping workers have given back so often may never get to its end: its events say so.
GIVEN_BACK_OFTEN = 5


@dataclass(frozen=True)
class Grant:
    """The right to run one task, and what is needed for it. ``payload`` is JSON text, undecoded."""

    id: uuid.UUID
    run: int
    type: str
    payload: str
    attempts: int
    max_attempts: int
    losses: int
    worker_losses: int
    soft_time_limit: float | None
    time_limit: float | None
    snoozes: int
    backoff: str | None
    in_workflow: bool = False


@dataclass(frozen=True)
class Finish:
    """One run that ended: the state it leads to, and what is kept. The ``ago`` are seconds."""

    id: uuid.UUID
    run: int
    state: State
    outcome: Outcome
    result: str | None = None
    error: str | None = None
    traceback: str | None = None
    started_ago: float | None = None
    ended_ago: float = 0.0
    delay: float = 0.0
    counted: bool = False
    cause: str | None = None
    failed: bool | None = None  # what it says to the circuit of its type, if that has one
    type: str = ""


def claim(connection: Connection, worker_id: int, runs: Sequence[tuple[uuid.UUID, int]]) -> list[Grant]:
    """Claim these tasks under these run numbers; what does not come back was not to be had."""
    wanted = {"worker": worker_id, "ids": [each[0] for each in runs], "runs": [each[1] for each in runs]}
    return [Grant(*row) for row in connection.execute(statement("claim"), wanted)]


def still_grantable(connection: Connection, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Of tasks that a claim did not get, those that were only locked at that moment."""
    return {row[0] for row in connection.execute(statement("still_grantable"), {"ids": list(ids)})}


def still_held(connection: Connection, runs: Sequence[tuple[uuid.UUID, int]]) -> set[uuid.UUID]:
    """Of runs that a finish did not end, those whose rows were only locked at that moment."""
    columns = {"ids": [each[0] for each in runs], "runs": [each[1] for each in runs]}
    return {row[0] for row in connection.execute(statement("still_held"), columns)}


def finish(connection: Connection, finishes: Sequence[Finish], *, recorded: bool = True) -> set[uuid.UUID]:
    """End these runs; an id that does not come back was refused, or locked (see ``still_held``).

    Call it in a transaction: the tasks that have ended for good are recorded for django-celery-results by
    a second statement, unless ``recorded`` is false.
    """
    columns: dict[str, Any] = {
        "alert": GIVEN_BACK_OFTEN,
        "ids": [each.id for each in finishes],
        "runs": [each.run for each in finishes],
        "states": [each.state.value for each in finishes],
        "outcomes": [each.outcome.value for each in finishes],
        "results": [each.result for each in finishes],
        "errors": [each.error for each in finishes],
        "tracebacks": [each.traceback for each in finishes],
        "started_ago": [each.started_ago for each in finishes],
        "ended_ago": [each.ended_ago for each in finishes],
        "delays": [each.delay for each in finishes],
        "counted": [each.counted for each in finishes],
        "causes": [each.cause for each in finishes],
    }
    rows = connection.execute(statement("finish"), columns).fetchall()
    if recorded:
        tracebacks = {each.run: each.traceback for each in finishes}
        final = [
            Record(task_id, worker_id, tracebacks[run])
            for task_id, run, worker_id, is_final in rows
            if is_final
        ]
        task_results.record(connection, final)
    ended = {task_id for task_id, *_ in rows}
    marks = [
        (each.type, each.failed, each.started_ago or 0.0)
        for each in finishes
        if each.failed is not None and each.id in ended
    ]
    if marks:
        circuit_breaking.mark(connection, marks)
    return ended


def mark_running(connection: Connection, started: Sequence[tuple[uuid.UUID, int, float]]) -> set[int]:
    """Show these runs, each with the seconds since it started, as running; returns those shown."""
    columns = {
        "ids": [each[0] for each in started],
        "runs": [each[1] for each in started],
        "ago": [each[2] for each in started],
    }
    return {row[0] for row in connection.execute(statement("mark_running"), columns)}


def report_progress(connection: Connection, said: Iterable[tuple[uuid.UUID, int, int, str]]) -> None:
    """Write the latest progress (percent, message) of these runs."""
    rows = list(said)
    columns = {
        "ids": [each[0] for each in rows],
        "runs": [each[1] for each in rows],
        "percents": [each[2] for each in rows],
        "messages": [each[3] for each in rows],
    }
    connection.execute(statement("report_progress"), columns)


@dataclass(frozen=True)
class Said:
    """One line that a run has logged, so many seconds ago. ``level`` is as logging has them."""

    id: uuid.UUID
    run: int
    ago: float
    level: int
    logger: str
    message: str


def write_log(connection: Connection, lines: Sequence[Said]) -> None:
    """Keep these lines, in their order."""
    columns = {
        "ids": [each.id for each in lines],
        "runs": [each.run for each in lines],
        "agos": [each.ago for each in lines],
        "levels": [each.level for each in lines],
        "loggers": [each.logger for each in lines],
        "messages": [each.message for each in lines],
    }
    connection.execute(statement("write_log"), columns)


def held_rows(connection: Connection, worker_id: int) -> list[tuple[uuid.UUID, int, bool]]:
    """(id, run, whether a cancel was requested) of every row that this worker holds."""
    return connection.execute(statement("held_rows"), {"worker": worker_id}).fetchall()


def after_failure(
    retry: Retry, *, attempts: int, max_attempts: int, retryable: bool, delay: float | None = None
) -> tuple[State, float]:
    """Where a failed attempt leads, and the seconds to wait; ``attempts`` counts it. ``delay`` is what the
    failure itself asks for, if it does."""
    if retryable and attempts < max_attempts:
        return State.RETRYING, retry.delay(attempts).total_seconds() if delay is None else delay
    return State.DEAD, 0.0


def after_loss(losses: int) -> State:
    """Where the death of a task's own process leads; ``losses`` counts it."""
    return State.DEAD if losses >= settings.MAX_LOSSES else State.QUEUED
