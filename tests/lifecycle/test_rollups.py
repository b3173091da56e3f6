"""Roll-ups: every end of an attempt is counted once, and folding loses none."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models import F, Sum
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import strategies as st

from capataz.lifecycle import rollups
from capataz.lifecycle.recovery import recover
from capataz.models import Outcome, Rollup, Task
from capataz.models.rollup import BOUNDS, BUCKETS, percentile
from capataz.models.throughput import throughput
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, tasks, together

Hire = Callable[..., StagedWorker]

COUNTS = ("succeeded", "failed", "lost", "given_back", "cancelled", "dead")


def counts() -> dict[str, int]:
    """What all roll-ups together have counted; what is zero is left out."""
    sums = Rollup.objects.aggregate(**{name: Sum(name) for name in COUNTS})
    return {name: count for name, count in sums.items() if count}


def age(by: timedelta) -> None:
    Rollup.objects.update(at=F("at") - by)


@pytest.mark.parametrize(
    ("state", "outcome", "counted"),
    [
        (State.SUCCEEDED, Outcome.SUCCEEDED, {"succeeded": 1}),
        (State.RETRYING, Outcome.FAILED, {"failed": 1}),
        (State.DEAD, Outcome.FAILED, {"failed": 1, "dead": 1}),
        (State.QUEUED, Outcome.LOST, {"lost": 1}),
        (State.DEAD, Outcome.LOST, {"lost": 1, "dead": 1}),
        (State.QUEUED, Outcome.GIVEN_BACK, {"given_back": 1}),
        (State.CANCELLED, Outcome.CANCELLED, {"cancelled": 1}),
    ],
)
def test_every_outcome_is_counted(
    worker: StagedWorker, state: State, outcome: Outcome, counted: dict[str, int]
) -> None:
    worker.end(worker.run(*tasks(1)), state, outcome)
    assert counts() == counted


def test_what_was_refused_or_never_started_is_not_counted(worker: StagedWorker) -> None:
    [grant] = worker.run(*tasks(1))
    worker.end([grant])
    worker.end([grant])
    worker.end(worker.hold(*tasks(1)), State.QUEUED, Outcome.GIVEN_BACK, started_ago=None)
    assert counts() == {"succeeded": 1}


def test_what_a_dead_worker_ran_is_counted_as_lost(worker: StagedWorker, session: Any) -> None:
    worker.run(*tasks(2))
    worker.hold(*tasks(1))
    recover(session, worker.id)
    assert counts() == {"lost": 2}


def test_a_roll_up_holds_run_times_and_waits(worker: StagedWorker) -> None:
    [task] = tasks(1)
    Task.objects.filter(pk=task.pk).update(created_at=Now() - timedelta(seconds=100))
    worker.end(worker.run(task), started_ago=4.0, ended_ago=1.0)
    [row] = Rollup.objects.all()
    assert (row.type, row.queue, row.seconds) == ("demo.echo", "default", 0)
    assert row.run_seconds == pytest.approx(3.0)
    assert row.wait_seconds == pytest.approx(96.0, abs=30)
    assert sum(row.run_times) == sum(row.wait_times) == 1
    assert 3.0 <= percentile(row.run_times, 0.5) <= 3.0 * 2**0.5


def test_a_wait_counts_from_the_time_that_a_task_was_due(worker: StagedWorker) -> None:
    [task] = tasks(1)
    Task.objects.filter(pk=task.pk).update(created_at=Now() - timedelta(days=1), run_at=Now())
    worker.end(worker.run(task), started_ago=0.0)
    assert Rollup.objects.get().wait_seconds < 3600


def test_folding_keeps_every_count_and_takes_what_is_old_enough(worker: StagedWorker, session: Any) -> None:
    for _ in range(3):
        worker.end(worker.run(*tasks(5)))
    rollups.fold(session)
    assert Rollup.objects.filter(seconds=0).count() == 3
    for older, seconds in ((60, 10), (3 * 3600, 60), (9 * 86_400, 3600)):
        age(timedelta(seconds=older))
        rollups.fold(session)
        assert set(Rollup.objects.values_list("seconds", flat=True)) == {seconds}
        assert counts() == {"succeeded": 15}
        assert sum(sum(row.run_times) for row in Rollup.objects.all()) == 15
        assert all(row.at.timestamp() % seconds == 0 for row in Rollup.objects.all())


def test_late_ones_are_added_to_what_is_folded_already(worker: StagedWorker, session: Any) -> None:
    for _ in range(2):
        worker.end(worker.run(*tasks(1)))
        Rollup.objects.filter(seconds=0).update(at="2026-01-01T00:00:03Z")
        session.execute("SELECT 1")
        rollups.fold(session)
    [row] = Rollup.objects.all()
    assert (row.succeeded, row.seconds, sum(row.run_times)) == (2, 3600, 2)


def test_two_that_fold_at_once_fold_everything_once(hire: Hire) -> None:
    worker = hire()
    for _ in range(40):
        worker.end(worker.run(*tasks(1)))
    age(timedelta(minutes=1))
    crew = [hire() for _ in range(3)]
    together(*(lambda each=each: rollups.fold(each.connection) for each in crew))
    assert counts() == {"succeeded": 40}
    assert set(Rollup.objects.values_list("seconds", flat=True)) == {10}


def test_nobody_waits_for_what_another_one_folds(worker: StagedWorker, session: psycopg.Connection) -> None:
    worker.end(worker.run(*tasks(1)))
    age(timedelta(minutes=1))
    session.execute("SET lock_timeout = 1")
    with worker.connection.transaction():
        rollups.fold(worker.connection)
        rollups.fold(session)
    assert counts() == {"succeeded": 1}


def test_ends_of_the_same_type_at_the_same_time_do_not_wait_for_each_other(hire: Hire) -> None:
    one, other = hire(), hire()
    [first], [second] = one.run(*tasks(1)), other.run(*tasks(1))
    other.connection.execute("SET lock_timeout = 1")
    with one.connection.transaction():
        one.end([first])
        other.end([second])
    assert counts() == {"succeeded": 2}


def test_ends_and_folding_at_once_lose_nothing(hire: Hire) -> None:
    crew = [hire() for _ in range(3)]

    def work(worker: StagedWorker) -> None:
        for _ in range(20):
            worker.end(worker.run(*tasks(2)))

    def fold(session: psycopg.Connection) -> None:
        for _ in range(20):
            session.execute("UPDATE capataz_rollup SET at = at - interval '1 minute' WHERE seconds = 0")
            rollups.fold(session)

    together(*(lambda each=each: work(each) for each in crew), lambda: fold(hire().connection))
    assert counts() == {"succeeded": 120}


def test_throughput_is_that_of_the_last_minute(worker: StagedWorker) -> None:
    nothing = throughput()
    assert (nothing.ended, nothing.success_rate, nothing.mean_seconds) == (0, None, None)
    assert nothing.run_percentile(0.5) is None
    worker.end(worker.run(*tasks(1)), started_ago=1.0)
    age(timedelta(minutes=2))
    worker.end(worker.run(*tasks(3)), started_ago=2.0)
    worker.end(worker.run(*tasks(1)), State.DEAD, Outcome.FAILED, started_ago=2.0)
    last = throughput()
    assert (last.succeeded, last.failed, last.lost) == (3, 1, 0)
    assert last.success_rate == 0.75
    assert last.mean_seconds == pytest.approx(2.0)


def test_old_roll_ups_are_deleted(worker: StagedWorker) -> None:
    worker.end(worker.run(*tasks(1)))
    age(timedelta(days=91))
    worker.end(worker.run(*tasks(1)))
    rollups.prune(90)
    assert counts() == {"succeeded": 1}


# Histograms.


@pytest.mark.django_db
@given(st.lists(st.floats(min_value=0, max_value=1e6), max_size=50))
def test_postgresql_counts_into_the_buckets_that_python_reads(times: list[float]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT capataz_histogram(%s::float8[]), capataz_bounds()", [times])
        histogram, bounds = cursor.fetchone()
    assert bounds == pytest.approx(BOUNDS)
    assert len(histogram) == BUCKETS
    expected = [0] * BUCKETS
    for seconds in times:
        expected[sum(bound <= seconds for bound in bounds)] += 1
    assert histogram == expected


def test_a_percentile_is_the_bound_that_so_many_stayed_within() -> None:
    histogram = [0] * BUCKETS
    histogram[2], histogram[10], histogram[-1] = 90, 9, 1
    assert percentile(histogram, 0.5) == BOUNDS[2]
    assert percentile(histogram, 0.95) == BOUNDS[10]
    assert percentile(histogram, 1) == BOUNDS[-1]
    assert percentile([0] * BUCKETS, 0.5) is None
