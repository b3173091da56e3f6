"""The census: what PostgreSQL says about the demo's tasks. Reads only, and never through Django's settings,
which were read before this platform existed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import psycopg
from psycopg.rows import class_row

from capataz.states import FINAL, WIRE, State

# How the API names whoever holds the demo's token.
SUBMITTED_BY = "token demo"


@dataclass(frozen=True)
class Moment:
    """How things stand. ``mean_ms`` is the average run time of completed tasks; recovered are those that
    completed after a loss.
    """

    counts: dict[str, int]  # by wire status
    finished: int
    retried: int
    recovered: int
    mean_ms: float


@dataclass(frozen=True)
class TypeSummary:
    """What became of the tasks of one type. Waits and run times are medians, in milliseconds."""

    type: str
    submitted: int
    completed: int
    failed: int
    cancelled: int
    retried: int
    recovered: int
    wait_ms: float | None
    run_ms: float | None


@dataclass(frozen=True)
class HeldTask:
    """A task in the hands of a worker."""

    id: Any
    key: str
    type: str
    state: str


@dataclass(frozen=True)
class Return:
    """How a task that was held by a dead worker went on; times are seconds after the death."""

    id: Any
    lost: float | None  # when its attempt was written down as lost
    started: float | None  # when it was started again
    by: str | None


_MOMENT = """
SELECT count(*) FILTER (WHERE attempts > 1 OR (attempts = 1 AND state IN ('retrying', 'queued'))),
       count(*) FILTER (WHERE state = 'succeeded' AND losses + worker_losses > 0),
       coalesce(avg(extract(epoch FROM finished_at - started_at))
                FILTER (WHERE state = 'succeeded') * 1000, 0)::float8
  FROM capataz_task WHERE submitted_by = %s
"""

_SUMMARY = """
WITH tries AS (
    SELECT task_id, min(started_at) AS first_start,
           max(finished_at - started_at) FILTER (WHERE outcome = 'succeeded') AS run_time
      FROM capataz_attempt GROUP BY task_id
)
SELECT type,
       count(*) AS submitted,
       count(*) FILTER (WHERE state = 'succeeded') AS completed,
       count(*) FILTER (WHERE state = 'dead') AS failed,
       count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
       count(*) FILTER (WHERE attempts > 1) AS retried,
       count(*) FILTER (WHERE state = 'succeeded' AND losses + worker_losses > 0) AS recovered,
       1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM wait)::float8) AS wait_ms,
       1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM run_time)::float8) AS run_ms
  FROM capataz_task AS task
  LEFT JOIN tries ON tries.task_id = task.id
 CROSS JOIN LATERAL (SELECT first_start - task.created_at) AS waited (wait)
 WHERE submitted_by = %s
 GROUP BY type ORDER BY type
"""

_RETURNS = """
SELECT task.id,
       extract(epoch FROM lost.finished_at - %(death)s)::float8 AS lost,
       extract(epoch FROM coalesce(again.started_at, held.started_at) - %(death)s)::float8 AS started,
       worker.name AS by
  FROM capataz_task AS task
  LEFT JOIN LATERAL (
      SELECT finished_at FROM capataz_attempt
       WHERE task_id = task.id AND worker_id = %(worker)s AND outcome = 'lost' ORDER BY id DESC LIMIT 1
  ) AS lost ON true
  LEFT JOIN LATERAL (
      SELECT started_at, worker_id FROM capataz_attempt
       WHERE task_id = task.id AND worker_id <> %(worker)s AND started_at > %(death)s ORDER BY id LIMIT 1
  ) AS again ON true
  LEFT JOIN LATERAL (
      SELECT task.started_at, task.worker_id
       WHERE task.state = 'running' AND task.worker_id <> %(worker)s AND task.started_at > %(death)s
  ) AS held ON true
  LEFT JOIN capataz_worker AS worker ON worker.id = coalesce(again.worker_id, held.worker_id)
 WHERE task.id = ANY (%(tasks)s)
"""


class Census:
    """Asks the platform's database."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="capataz demo")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def moment(self) -> Moment:
        """How things stand now."""
        states = self._states()
        counts = dict.fromkeys(WIRE.values(), 0)
        for state, number in states.items():
            counts[WIRE[state]] += number
        [(retried, recovered, mean_ms)] = self._connection.execute(_MOMENT, [SUBMITTED_BY]).fetchall()
        finished = sum(number for state, number in states.items() if state in FINAL)
        return Moment(counts, finished, retried, recovered, mean_ms)

    def running_by_pid(self) -> dict[int, int]:
        """The pid of each living worker, and how many tasks it runs."""
        rows = self._connection.execute(
            """
            SELECT worker.pid, count(task.id)
              FROM capataz_worker AS worker
              LEFT JOIN capataz_task AS task ON task.worker_id = worker.id AND task.state = 'running'
             WHERE worker.state = 'running'
             GROUP BY worker.pid
            """
        )
        return dict(rows.fetchall())

    def worker_id(self, pid: int) -> int:
        """The id of the worker with this pid."""
        query = "SELECT max(id) FROM capataz_worker WHERE pid = %s"
        [[worker]] = self._connection.execute(query, [pid]).fetchall()
        return int(worker)

    def now(self) -> datetime:
        """The database's clock."""
        [[now]] = self._connection.execute("SELECT clock_timestamp()").fetchall()
        assert isinstance(now, datetime)
        return now

    def held_by(self, worker: int) -> list[HeldTask]:
        """What is in the hands of this worker."""
        query = "SELECT id, key, type, state FROM capataz_task WHERE worker_id = %s ORDER BY key"
        with self._connection.cursor(row_factory=class_row(HeldTask)) as cursor:
            return cursor.execute(query, [worker]).fetchall()

    def returns(self, tasks: list[Any], worker: int, death: datetime) -> list[Return]:
        """How these tasks went on after the death of the worker that held them."""
        parameters = {"tasks": tasks, "worker": worker, "death": death}
        with self._connection.cursor(row_factory=class_row(Return)) as cursor:
            return cursor.execute(_RETURNS, parameters).fetchall()

    def successes(self) -> dict[str, int]:
        """How many successful attempts each task has, by our id."""
        rows = self._connection.execute(
            """
            SELECT task.key, count(attempt.id)
              FROM capataz_task AS task
              LEFT JOIN capataz_attempt AS attempt
                ON attempt.task_id = task.id AND attempt.outcome = 'succeeded'
             WHERE task.submitted_by = %s
             GROUP BY task.key
            """,
            [SUBMITTED_BY],
        )
        return dict(rows.fetchall())

    def summaries(self) -> list[TypeSummary]:
        """What became of the tasks, by type."""
        with self._connection.cursor(row_factory=class_row(TypeSummary)) as cursor:
            return cursor.execute(_SUMMARY, [SUBMITTED_BY]).fetchall()

    def _states(self) -> dict[State, int]:
        query = "SELECT state, count(*) FROM capataz_task WHERE submitted_by = %s GROUP BY state"
        rows = self._connection.execute(query, [SUBMITTED_BY]).fetchall()
        return {State(state): number for state, number in rows}
