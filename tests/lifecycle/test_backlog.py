"""A big backlog and a long history: what runs all the time reads neither."""

import json
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import transaction

from capataz.lifecycle import retention
from capataz.lifecycle.retention import BEFORE_ALL, prune
from capataz.models import Queue, Task
from capataz.priority import HIGHEST, LOWEST
from capataz.sql import statement
from capataz.states import State
from tests.lifecycle.stage import StagedWorker

MOST = 100  # what each statement is asked for at most

# Sixty thousand tasks of which few can be moved now: waiting, for a worker and for their time, released,
# and ended; what has to be kept came first. Every hundredth id is a client's own and does not sort by age.
BACKLOG = """
    INSERT INTO capataz_task (id, type, queue, priority, state, payload, max_attempts, created_at,
                              run_at, released_at, verify_at, publishes, finished_at, lane)
    SELECT CASE WHEN n %% 100 = 0 THEN gen_random_uuid()
                ELSE ('0198a000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid END,
           'demo.echo', 'default', n %% 11, state, '{}', 3, now() - interval '40 days',
           CASE WHEN state IN ('scheduled', 'retrying') THEN now() + interval '1 day' END,
           CASE WHEN n > 59980 THEN now() END, CASE WHEN n > 59980 THEN now() + interval '1 hour' END, 1,
           CASE WHEN state IN ('dead', 'succeeded') THEN now() - interval '30 days' + n * interval '1 s' END,
           CASE WHEN n BETWEEN 40000 AND 45000 THEN 'demo.fail||'
                WHEN n BETWEEN 45000 AND 50000 THEN 'demo.sleep||' END
      FROM (
        SELECT n, CASE WHEN n <= 10000 THEN 'dead' WHEN n <= 20000 THEN 'succeeded'
                       WHEN n <= 25000 THEN 'scheduled' WHEN n <= 30000 THEN 'retrying'
                       ELSE 'queued' END AS state
          FROM generate_series(1, 60000) AS n
      ) AS made
"""


@pytest.fixture
def backlog(worker: StagedWorker) -> Iterator[psycopg.Connection]:
    Queue.objects.get_or_create(name="default")
    Queue.objects.get_or_create(name="maintenance")
    worker.connection.execute(BACKLOG, [])
    worker.connection.execute("ANALYZE capataz_task")
    yield worker.connection


def parameters(worker_id: int) -> dict[str, dict[str, Any]]:
    """What runs all the time, or whenever somebody submits or looks, with what it is asked for."""
    here = {"queues": ["default"], "types": ["demo.echo"], "most": MOST}
    return {
        "release_due": {"most": MOST},
        "next_due": {},
        "waiting_queues": {},
        "out": {"queue": "default"},
        "aged_queues": {"aged": 300.0},
        "withdraw_aged": {"aged": 300.0, "most": MOST},
        "lanes": {"queue": "default", "after": "", "most": MOST},
        "candidates": {
            "queue": "default",
            "lanes": ["demo.fail||", "demo.sleep||"],
            "rooms": [10, 10],
            "weights": [None, None],
            "types": ["demo.echo"],
            "most": 10,
            "look_for_aged": True,
            "aged": 300.0,
            "share": 4,
        },
        "in_use": {"types": ["demo.echo"], "paths": [""]},
        "park": {
            "queue": "default",
            "free": ["demo.echo"],
            "types": ["demo.fail"],
            "paths": [""],
            "most": MOST,
        },
        "release": {
            "queue": "default",
            "types": ["demo.echo"],
            "shares": [1.0],
            "room": 10,
            "most": MOST,
            "verify": 3.0,
        },
        "expire": {"most": MOST},
        "withdraw": here,
        "verify": {
            **here,
            "empty": ["default"],
            "all": True,
            "first": 3.0,
            "longest": 60.0,
            "patience": 60.0,
            "aged": 300.0,
        },
        "held_rows": {"worker": worker_id},
        "orphans": {},
        "is_deaf": {"worker": worker_id, "seconds": 10.0},
        "queue_load": {"cap": MOST, "lowest": LOWEST, "highest": HIGHEST},
        "room": {"queue": "default", "limit": MOST, "id": [uuid.uuid4()], "key": ["new"]},
    }


def read(plan: dict[str, Any]) -> int:
    """How many rows and index entries the plan has read of the task table when it was run."""
    own = 0
    if plan.get("Relation Name") == "capataz_task" and "Scan" in plan["Node Type"]:
        kept = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        own = round(sum(plan.get(name, 0) for name in kept) * plan["Actual Loops"])
    return own + sum(read(inner) for inner in plan.get("Plans", []))


def scans(plan: dict[str, Any]) -> set[str]:
    """In which ways the plan reads the task table."""
    own = {plan["Node Type"]} if plan.get("Relation Name") == "capataz_task" else set()
    return own.union(*(scans(inner) for inner in plan.get("Plans", [])))


def indexes(plan: dict[str, Any]) -> Iterator[str]:
    """The indexes that the plan scans, each as often as it does."""
    if "Index Name" in plan:
        yield from [plan["Index Name"]] * round(plan["Actual Loops"])
    for inner in plan.get("Plans", []):
        yield from indexes(inner)


def test_what_runs_all_the_time_reads_no_more_than_it_moves(
    backlog: psycopg.Connection, worker: StagedWorker
) -> None:
    for name, given in parameters(worker.id).items():
        with backlog.transaction(force_rollback=True):
            query = "EXPLAIN (ANALYZE, FORMAT JSON) " + statement(name)
            [[explained]] = backlog.execute(query, given).fetchall()
        plan = explained[0]["Plan"]
        # A few kinds of waiting, each up to what was asked for, and read once more when it is moved.
        assert read(plan) <= 6 * MOST, f"{name} reads {read(plan)}: {plan}"
        assert "Seq Scan" not in scans(plan), name


def test_a_release_scans_what_waits_once_and_moves_many_by_their_ids(
    backlog: psycopg.Connection, worker: StagedWorker
) -> None:
    """Each scan walks over what an old snapshot keeps in the index of what waits."""
    given = {**parameters(worker.id)["release"], "room": MOST}
    with backlog.transaction(force_rollback=True):
        assert len(backlog.execute(statement("release"), given).fetchall()) == MOST
    with backlog.transaction(force_rollback=True):
        query = "EXPLAIN (ANALYZE, FORMAT JSON) " + statement("release")
        [[explained]] = backlog.execute(query, given).fetchall()
    used = list(indexes(explained[0]["Plan"]))
    assert used.count("capataz_task_waiting") == 1
    assert set(used) == {"capataz_task_waiting", "capataz_task_pkey"}


def test_each_batch_of_pruning_reads_what_it_deletes(backlog: psycopg.Connection) -> None:
    """Also where what is kept longer came first, and where ids do not sort by age."""
    for state, age in ((State.SUCCEEDED, 7), (State.DEAD, 90), (State.EXPIRED, 1)):
        with transaction.atomic():
            batch = retention.oldest(state, timedelta(days=age), BEFORE_ALL)[:MOST]
            [explained] = json.loads(batch.explain(format="json", analyze=True))
        assert read(explained["Plan"]) <= 2 * MOST, f"{state}: {explained}"
        assert "Seq Scan" not in scans(explained["Plan"])


def test_a_batch_goes_on_where_the_one_before_ended(
    backlog: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads an old snapshot: what was deleted is still in the index, and not walked over again."""
    begun: list[datetime] = []

    def watched(state: State, age: timedelta, since: datetime) -> Any:
        if state == State.SUCCEEDED:
            begun.append(since)
        return original(state, age, since)

    original = retention.oldest
    monkeypatch.setattr(retention, "oldest", watched)
    monkeypatch.setattr(retention, "REST", 0.0)
    assert prune(batch=4000)["succeeded"] == 10_000
    assert Task.objects.filter(state="dead").count() == 10_000
    assert len(begun) == 3
    assert begun[0] == BEFORE_ALL
    assert begun[0] < begun[1] < begun[2]
