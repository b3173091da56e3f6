"""One step of a load run on the database that the environment names: ``load_client.py STEP ...``.

Prints what it measured as one line of JSON; what takes long tells on stderr how far it is.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import django

django.setup()

import redis  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from capataz import handlers  # noqa: E402
from capataz.api.pages import page_of  # noqa: E402
from capataz.database import Connection, Session  # noqa: E402
from capataz.lifecycle import execution, presence, retention  # noqa: E402
from capataz.lifecycle.dispatch import Dispatcher  # noqa: E402
from capataz.lifecycle.execution import Finish  # noqa: E402
from capataz.lifecycle.submission import Submission, known_queues, submit, submit_many  # noqa: E402
from capataz.models import Outcome, Task  # noqa: E402
from capataz.models.queue_load import queue_loads  # noqa: E402
from capataz.states import State  # noqa: E402
from dashboard.census import census  # noqa: E402

PAYLOAD = {"message": "x" * 200}
CHUNK = 5000  # tasks of one submission
BUNDLE = 500  # tasks claimed and finished by one statement each, while draining
PACE = 0.03  # seconds from one measured claim to the next
AT_A_TIME = 5  # tasks of one measured claim
SINGLES = 200
TURNS = 20

# As the dispatcher releases, without its window.
RELEASE = """
    UPDATE capataz_task AS task
       SET released_at = now(), verify_at = now() + interval '1 hour', publishes = 1
      FROM (
        SELECT id FROM capataz_task
         WHERE queue = 'default' AND state = 'queued' AND released_at IS NULL
         ORDER BY priority DESC, created_at, id LIMIT %s
      ) AS next
     WHERE task.id = next.id
    RETURNING task.id
"""
WITHDRAW = """
    UPDATE capataz_task SET released_at = NULL, verify_at = NULL, publishes = 0
     WHERE worker_id IS NULL AND released_at IS NOT NULL
"""


def prepare() -> dict[str, Any]:
    """An empty database and an empty Redis."""
    call_command("migrate", verbosity=0)
    call_command("setup_platform", verbosity=0)
    redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()
    return {}


def fill(tasks: int) -> dict[str, float]:
    """Let so many tasks wait."""
    began = time.monotonic()
    for done in range(0, tasks, CHUNK):
        submit_many(_submissions(min(CHUNK, tasks - done)))
        _progress("submitted", min(tasks, done + CHUNK), tasks)
    return {"seconds": time.monotonic() - began}


def submission(tasks: int) -> dict[str, float]:
    """Submit one by one, and many at once; microseconds of time for a task."""
    submit("demo.echo", PAYLOAD)
    singles = [_seconds(lambda: submit("demo.echo", PAYLOAD)) for _ in range(SINGLES)]
    many = _seconds(lambda: submit_many(_submissions(tasks)))
    return {"single_us": 1e6 * statistics.median(singles), "many_us": 1e6 * many / tasks}


def turns() -> dict[str, float]:
    """The turns of a dispatcher that finds more to release than fits its window; milliseconds."""
    with _worker() as (worker, _):
        submit_many(_submissions(500))
        dispatcher, taken = Dispatcher(), []
        for _ in range(TURNS):
            taken.append(_seconds(dispatcher.turn))
            worker.execute(WITHDRAW)
        dispatcher._session.close()
    redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()
    return {"turn_ms": 1e3 * statistics.median(taken)}


def looks() -> dict[str, float]:
    """What people and programs look at every few seconds; milliseconds."""
    questions: dict[str, Callable[[], Any]] = {
        "queue_loads_ms": queue_loads,
        "census_ms": census,
        "page_ms": lambda: page_of(Task.objects.all(), limit=50, after=None),
        "page_of_waiting_ms": lambda: page_of(Task.objects.with_status("pending"), limit=50, after=None),
        "page_of_dead_ms": lambda: page_of(Task.objects.with_status("failed"), limit=50, after=None),
    }
    return {name: 1e3 * statistics.median(_seconds(ask) for _ in range(5)) for name, ask in questions.items()}


def execution_of(tasks: int) -> dict[str, float]:
    """Submit so many tasks and wait until so many have ended, these or older ones."""
    ended = _attempts() + tasks
    began = time.monotonic()
    submit_many(_submissions(tasks))
    while _attempts() < ended:
        time.sleep(0.05)
    return {"seconds": time.monotonic() - began}


def drain() -> dict[str, float]:
    """Claim and finish all that waits, with the statements of a worker's ledger."""
    tasks = Task.objects.filter(state=State.QUEUED).count()
    began, done = time.monotonic(), 0
    with _worker() as (worker, worker_id):
        while ids := [row[0] for row in worker.execute(RELEASE, [BUNDLE])]:
            _claim_and_finish(worker, worker_id, ids, done)
            done += len(ids)
            _progress("finished", done, tasks)
    return {"seconds": time.monotonic() - began}


def claims(seconds: float) -> dict[str, Any]:
    """Claim and finish a few tasks again and again; each claim's and finish's milliseconds."""
    taken: dict[str, list[float]] = {"claim_ms": [], "finish_ms": []}
    with _worker() as (worker, worker_id):
        end, done = time.monotonic() + seconds, 0
        ready: list[uuid.UUID] = []
        while time.monotonic() < end:
            began = time.monotonic()
            if not ready:
                ready = [row[0] for row in worker.execute(RELEASE, [BUNDLE])]
            ids, ready = ready[:AT_A_TIME], ready[AT_A_TIME:]
            claimed, finished = _claim_and_finish(worker, worker_id, ids, done)
            done += len(ids)
            if done > 50 * AT_A_TIME:  # the first ones meet cold caches
                taken["claim_ms"].append(1e3 * claimed)
                taken["finish_ms"].append(1e3 * finished)
            time.sleep(max(0.0, PACE - (time.monotonic() - began)))
        worker.execute(WITHDRAW)
    return taken


def prune(before: float, seconds: float) -> dict[str, Any]:
    """Prune for so long what had succeeded before that time; how many went, and whether none is left."""
    end = time.monotonic() + seconds
    age = timedelta(seconds=time.time() - before)
    deleted = retention.prune(succeeded=age, stop=lambda: time.monotonic() > end)["succeeded"]
    return {"deleted": deleted, "all": time.monotonic() <= end}


def prune_all() -> dict[str, int]:
    """Prune all that has succeeded."""
    return {"deleted": retention.prune(succeeded=timedelta())["succeeded"]}


def _claim_and_finish(
    worker: Connection, worker_id: int, ids: list[uuid.UUID], number: int
) -> tuple[float, float]:
    runs = [(task_id, (worker_id << 32) | (number + place)) for place, task_id in enumerate(ids, 1)]
    began = time.monotonic()
    grants = execution.claim(worker, worker_id, runs)
    between = time.monotonic()
    ends = [
        Finish(
            each.id,
            each.run,
            State.SUCCEEDED,
            Outcome.SUCCEEDED,
            result=each.payload,
            started_ago=0.001,
        )
        for each in grants
    ]
    with worker.transaction():
        execution.finish(worker, ends)
    return between - began, time.monotonic() - between


@contextmanager
def _worker() -> Iterator[tuple[Connection, int]]:
    """A worker that exists in the database alone."""
    session = Session("load")
    try:
        worker_id = presence.register(
            session.connection(),
            name=f"load-{os.getpid()}",
            host="load",
            pid=0,
            queues=sorted(known_queues()),
            types=[known.name for known in handlers.registered()],
            max_concurrency=4,
        )
        yield session.connection(), worker_id
        session.connection().execute(
            "UPDATE capataz_worker SET state = 'stopped', stopped_at = now() WHERE id = %s", [worker_id]
        )
    finally:
        session.close()


def _submissions(count: int) -> Iterator[Submission]:
    return (Submission(type="demo.echo", data=PAYLOAD) for _ in range(count))


def _attempts() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM capataz_attempt")
        return int(cursor.fetchone()[0])


def _seconds(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _progress(what: str, done: int, tasks: int) -> None:
    if done >= tasks or done % max(CHUNK, tasks // 20 // CHUNK * CHUNK) == 0:
        print(f"    {what} {done:,} of {tasks:,}", file=sys.stderr, flush=True)


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    step.__name__: step
    for step in (prepare, fill, submission, turns, looks, execution_of, drain, claims, prune, prune_all)
}

if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    print(json.dumps(STEPS[name](*(json.loads(number) for number in numbers))))
