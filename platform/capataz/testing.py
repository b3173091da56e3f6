"""For the tests of those who use Capataz: run tasks here and now, on PostgreSQL alone.

No worker, dispatcher or Redis is needed. Attempts go through the code that workers use: payloads are checked,
results have to be JSON, failures are retried or become dead letters. What needs a process of its own is left
out: time limits, cancels of what runs, and the limits that the dispatcher keeps.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import psycopg
from django.db import connection as django_connection
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from psycopg.pq import TransactionStatus

from capataz import database, handlers
from capataz import priority as priorities
from capataz.database import Connection
from capataz.errors import CapatazError
from capataz.handlers import Handler, RunningTask
from capataz.lifecycle import execution, settling, submission, task_results
from capataz.lifecycle.task_results import Record
from capataz.models import Queue, Task, Worker
from capataz.sql import statement
from capataz.states import State
from capataz.worker import child, coroutines
from capataz.worker.holding import Bundle, Ended, Ending, Held
from capataz.worker.ledger import to_finish

# Attempts after which a drain gives up: tasks that submit tasks for ever would keep it busy for ever.
MOST = 1000

_ENDINGS = {
    child.SUCCEEDED: Ending.SUCCEEDED,
    child.FAILED: Ending.FAILED,
    child.INTERRUPTED: Ending.CANCELLED,
    child.SNOOZED: Ending.SNOOZED,
    child.EXCUSED: Ending.FAILED,
    child.HELD_OFF: Ending.GIVEN_BACK,
}
_TIMES = ("created_at", "run_at", "expires_at", "started_at", "finished_at", "released_at")
_runs = itertools.count(1)


@dataclass
class RecordingTask(RunningTask):
    """What a handler is given when it is run alone. ``reported`` is the progress it told, oldest first."""

    reported: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.report_progress = lambda percent, message: self.reported.append((percent, message))


@dataclass
class Alone:
    """What came of a handler that was run alone."""

    result: Any
    task: RecordingTask

    @property
    def reported(self) -> list[tuple[int, str]]:
        """The progress it told, oldest first."""
        return self.task.reported


def run_handler(handler: Handler[Any] | str, data: Any = None, *, attempt: int = 1, starts: int = 1) -> Alone:
    """Run a handler's function with this payload, without a task and without a database.

    Raises InvalidSubmission for a payload that does not fit, and whatever the function raises.
    """
    known = handlers.find(handler) if isinstance(handler, str) else handler
    task = RecordingTask(id=uuid.uuid4(), type=known.name, attempt=attempt, starts=starts)
    payload = known.load(known.parse({} if data is None else data))
    return Alone(coroutines.finished(known(task, payload)), task)


def run(task: Task | uuid.UUID | str) -> Task:
    """Run one attempt of this task, whether or not its time has come; returns it as it is afterwards.

    Raises CapatazError if nothing of it is left to run.
    """
    wanted = task if isinstance(task, Task) else Task.objects.called(str(task)).get()
    _attempt(wanted.pk)
    return Task.objects.get(pk=wanted.pk)


def drain(*, most: int = MOST) -> list[Task]:
    """Run all that is due, what that submits, and what it has to be retried for, until nothing is left.

    In the order in which a single worker would: by priority, then by age. Retries wait for nothing, but come
    after what has not been tried. Returns the tasks that were run, in that order, one entry for each attempt.

    What is scheduled for later stays: see ``travel``. So does what waits in a paused queue.
    """
    ran: list[uuid.UUID] = []
    _settle()
    while (task_id := _next()) is not None:
        if len(ran) >= most:
            raise AssertionError(
                f"after {most} attempts there is still more to run: {Task.objects.get(pk=task_id)}"
            )
        _attempt(task_id)
        ran.append(task_id)
        _settle()
    rows = Task.objects.in_bulk(ran)
    return [rows[task_id] for task_id in ran if task_id in rows]


def travel(seconds: float) -> None:
    """Go this many seconds into the future: all that has happened to tasks is that much longer ago.

    Tasks that were to run within that time are due, and deadlines within it have passed.
    """
    by = {name: F(name) - timedelta(seconds=seconds) for name in _TIMES}
    Task.objects.update(**by)


@contextlib.contextmanager
def inline(*, retries: bool = True) -> Iterator[None]:
    """Run whatever is submitted inside the block, at once, before the submission returns.

    A task that fails is tried again at once as often as it may; without ``retries`` it is left ``retrying``.
    What is scheduled for later is only recorded.
    """
    insert = submission._insert

    def insert_and_run(rows: list[Any]) -> list[uuid.UUID]:
        ids = insert(rows)
        for task_id in dict.fromkeys(ids):
            _run_now(task_id, retries=retries)
        return ids

    with mock.patch.object(submission, "_insert", insert_and_run):
        yield


def submitted(type: str | None = None, data: Any = None, **columns: Any) -> list[Task]:
    """The tasks that were submitted, oldest first: of this type, whose payload contains ``data``, and whose
    columns (``priority``, ``queue``, ``state``, ``key`` ...) have these values.

    A dict is contained in another if that has its keys, with values that contain its values.
    """
    if "priority" in columns:
        columns["priority"] = priorities.parse(columns["priority"])
    tasks = Task.objects.filter(**columns).order_by("created_at", "pk")
    if type is not None:
        tasks = tasks.filter(type=type)
    return [task for task in tasks if data is None or _contains(task.payload, data)]


def assert_submitted(type: str, data: Any = None, *, times: int | None = None, **columns: Any) -> list[Task]:
    """Fail unless such a task was submitted, ``times`` times if that is given; returns them.

    See ``submitted`` for what such a task is.
    """
    found = submitted(type, data, **columns)
    if found if times is None else len(found) == times:
        return found
    wanted = "at least once" if times is None else f"{times} times"
    raise AssertionError(
        f"{_told(type, data, columns)} was submitted {len(found)} times, not {wanted}; {_all()}"
    )


def assert_not_submitted(type: str | None = None, data: Any = None, **columns: Any) -> None:
    """Fail if such a task was submitted; without arguments, if any was."""
    if found := submitted(type, data, **columns):
        raise AssertionError(
            f"{_told(type, data, columns)} was submitted {len(found)} times, not never; {_all()}"
        )


def _next() -> uuid.UUID | None:
    """The task that a single worker would run next; first those that are due."""
    _expire()
    paused = Queue.objects.filter(paused_at__isnull=False).values("name")
    tasks = Task.objects.filter(type__in=[each.name for each in handlers.registered()]).exclude(
        queue__in=paused
    )
    due = tasks.filter(state=State.QUEUED) | tasks.filter(state=State.SCHEDULED, run_at__lte=Now())
    first: Task | None = due.order_by("-priority", "created_at", "pk").first()
    first = first or tasks.filter(state=State.RETRYING).order_by("run_at", "pk").first()
    return None if first is None else first.pk


def _run_now(task_id: uuid.UUID, *, retries: bool) -> None:
    attempted = False
    while True:
        state = Task.objects.values_list("state", flat=True).get(pk=task_id)
        if state != State.QUEUED and not (state == State.RETRYING and attempted and retries):
            return
        _attempt(task_id)
        attempted = True


def _attempt(task_id: uuid.UUID) -> None:
    """One attempt of this task, by the statements that workers use."""
    waits = [State.SCHEDULED, State.QUEUED, State.RETRYING]
    waiting = Task.objects.filter(pk=task_id, state__in=waits)
    if not waiting.update(state=State.QUEUED, released_at=Now(), verify_at=Now(), publishes=1):
        raise CapatazError(f"there is nothing to run: the task is {Task.objects.get(pk=task_id).state}")
    with _engine() as connection:
        grants = execution.claim(connection, _worker(), [(task_id, next(_runs))])
    if not grants:
        raise CapatazError("there is nothing to run: the task is past its deadline")
    grant = grants[0]
    held = Held.granted(grant, handlers.find(grant.type), Bundle(0, grant.type, lambda: None), 0)
    held.started = time.monotonic()
    with _engine() as connection:
        execution.mark_running(connection, [(held.id, held.run, 0.0)])

    def report(percent: int, message: str) -> None:
        with _engine() as connection:
            execution.report_progress(connection, [(held.id, held.run, percent, message)])

    item = (held.id.bytes, held.payload, held.attempts + 1, held.starts, None, held.in_workflow)
    with _not_spoiling_the_transaction():
        how, result, error, traceback, retryable, delay = child.outcome(held.handler, item, report)
    ended = Ended(
        held,
        _ENDINGS[how],
        time.monotonic(),
        result=result,
        error=error,
        traceback=traceback,
        retryable=retryable,
        delay=delay,
    )
    with transaction.atomic(), _engine() as connection:
        execution.finish(connection, [to_finish(ended, time.monotonic())])


def _settle() -> None:
    """Let those go on that have waited for what has ended."""
    with _engine() as connection:
        while settling.settle(connection):
            pass


def _worker() -> int:
    """The row of a worker: only those that run are granted anything."""
    known = (
        Worker.objects.filter(name="capataz.testing", state="running").values_list("pk", flat=True).first()
    )
    if known is not None:
        return known
    about = {
        "name": "capataz.testing",
        "host": "here",
        "pid": 0,
        "queues": [],
        "types": [],
        "max_concurrency": 1,
    }
    with _engine() as connection:
        row = connection.execute(statement("register_worker"), {**about, "backends": "[]"}).fetchone()
    assert row is not None
    return int(row[0])


def _expire() -> None:
    with transaction.atomic(), _engine() as connection:
        late = connection.execute(statement("expire"), {"most": MOST}).fetchall()
        task_results.record(connection, [Record(task_id) for (task_id,) in late])


@contextlib.contextmanager
def _engine() -> Iterator[Connection]:
    """Django's connection, so that all of it is in the test's own transaction, as the engine uses one."""
    connection = database.driver()
    own = connection.cursor_factory
    connection.cursor_factory = psycopg.Cursor
    try:
        yield connection
    finally:
        connection.cursor_factory = own


@contextlib.contextmanager
def _not_spoiling_the_transaction() -> Iterator[None]:
    """In the transaction of a test, undo what a handler did to the database if that has broken it.

    In a process of its own it has none to break, and what it had written before stays written.
    """
    if not django_connection.in_atomic_block:
        yield
        return
    savepoint = transaction.savepoint()
    yield
    broken = database.driver().info.transaction_status == TransactionStatus.INERROR
    if broken or django_connection.needs_rollback:
        transaction.savepoint_rollback(savepoint)
        django_connection.needs_rollback = False
    else:
        transaction.savepoint_commit(savepoint)


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and _contains(whole[name], each) for name, each in part.items()
        )
    return bool(whole == part)


def _told(type: str | None, data: Any, columns: dict[str, Any]) -> str:
    about = [f"data={data!r}"] if data is not None else []
    about += [f"{name}={value!r}" for name, value in columns.items()]
    return " with ".join([type or "a task", *([", ".join(about)] if about else [])])


def _all() -> str:
    tasks = Task.objects.order_by("created_at", "pk")[:20]
    said = "; ".join(f"{task.type} {task.payload} (priority {task.priority}, {task.state})" for task in tasks)
    return f"submitted were: {said}" if said else "nothing was submitted"
