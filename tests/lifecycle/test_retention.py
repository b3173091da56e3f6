"""Retention: what is past its time goes, in small steps; nothing else does."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from capataz.lifecycle import retention
from capataz.lifecycle.retention import DAYS_AHEAD, PARTITIONED, prepare_partitions, prune
from capataz.models import Task, Worker
from capataz.states import FINAL, UNFINISHED, State
from tests.lifecycle.stage import StagedWorker, tasks, together

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def ended(state: State, *, ago: timedelta, count: int = 1) -> list[Task]:
    made = tasks(count)
    Task.objects.filter(pk__in=[task.pk for task in made]).update(state=state, finished_at=Now() - ago)
    return made


def left() -> set[Any]:
    return set(Task.objects.values_list("pk", flat=True))


def partitions(table: str) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass", [table]
        )
        return {name for (name,) in cursor.fetchall()}


def day_name(table: str, days: int) -> str:
    return f"{table}_{timezone.now() + days * DAY:%Y%m%d}"


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_task_goes_when_its_outcome_is_past_its_time(state: State, settings: Any) -> None:
    age = timedelta(days=getattr(settings, f"KEEP_{state.name}_DAYS"))
    ended(state, ago=age + DAY, count=2)
    [young] = ended(state, ago=age - DAY)
    assert prune()[state.value] == 2
    assert left() == {young.pk}


def test_each_outcome_is_kept_for_its_own_time() -> None:
    for state in FINAL:
        ended(state, ago=5 * DAY)
    deleted = prune(succeeded=2 * DAY, dead=9 * DAY, cancelled=9 * DAY, expired=DAY)
    assert deleted == {"succeeded": 1, "dead": 0, "cancelled": 0, "expired": 1}


@pytest.mark.parametrize("state", sorted(UNFINISHED - {State.CLAIMED, State.RUNNING}))
def test_an_unfinished_task_is_never_pruned_however_old(state: State) -> None:
    [task] = tasks(1)
    Task.objects.update(state=state, created_at=Now() - 4000 * DAY)
    prune(succeeded=DAY, dead=DAY, cancelled=DAY, expired=DAY)
    assert left() == {task.pk}


def test_a_held_task_is_never_pruned_however_long_it_runs(worker: StagedWorker) -> None:
    claimed, running = tasks(2)
    worker.hold(claimed)
    worker.run(running, ago=4000 * 86400)
    prune(succeeded=DAY)
    assert left() == {claimed.pk, running.pk}


def test_everything_that_has_ended_goes_when_nothing_is_to_be_kept() -> None:
    ended(State.SUCCEEDED, ago=timedelta(seconds=1))
    assert prune(succeeded=timedelta())["succeeded"] == 1


def test_many_go_in_batches_and_all_of_them(worker: StagedWorker) -> None:
    ended(State.SUCCEEDED, ago=9 * DAY, count=25)
    assert prune(batch=10)["succeeded"] == 25
    assert left() == set()


def test_pruning_stops_between_two_batches_when_it_is_asked_to() -> None:
    ended(State.SUCCEEDED, ago=9 * DAY, count=25)
    answers = iter([False, False, True, True, True, True])
    assert prune(batch=10, stop=lambda: next(answers))["succeeded"] == 20


def test_a_task_that_somebody_has_locked_is_left_for_the_next_time(
    transactional_db: None, locked: Any
) -> None:
    one, other = ended(State.DEAD, ago=100 * DAY, count=2)
    with locked(one):
        assert prune()["dead"] == 1
    assert left() == {one.pk}
    assert other.pk not in left()


def test_two_who_prune_at_once_delete_everything_once(transactional_db: None) -> None:
    ended(State.SUCCEEDED, ago=9 * DAY, count=200)
    counts = together(lambda: prune(batch=10), lambda: prune(batch=10))
    assert sum(each["succeeded"] for each in counts) + len(left()) == 200
    prune()
    assert left() == set()


def test_workers_that_ended_long_ago_are_no_longer_listed(
    worker: StagedWorker, hire: Callable[..., Any]
) -> None:
    gone, recent = hire(), hire()
    Worker.objects.filter(pk=gone.id).update(state="lost", stopped_at=Now() - 8 * DAY)
    Worker.objects.filter(pk=recent.id).update(state="stopped", stopped_at=Now() - 6 * DAY)
    prune()
    assert set(Worker.objects.values_list("pk", flat=True)) == {worker.id, recent.id}


# Partitions.


@pytest.mark.parametrize("table", PARTITIONED)
def test_the_days_ahead_have_their_partitions(table: str) -> None:
    prepare_partitions()
    assert {day_name(table, days) for days in range(DAYS_AHEAD + 1)} <= partitions(table)


@pytest.mark.parametrize("table", PARTITIONED)
def test_preparing_again_changes_nothing(table: str) -> None:
    prepare_partitions()
    before = partitions(table)
    prepare_partitions()
    assert partitions(table) == before


@pytest.mark.parametrize("table", PARTITIONED)
def test_pruning_makes_the_days_ahead(table: str) -> None:
    name = day_name(table, DAYS_AHEAD)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {name}")
    prune()
    assert name in partitions(table)


def test_two_who_prepare_at_once_do_not_get_in_each_others_way(
    transactional_db: None, tables_keep_their_partitions: None
) -> None:
    for _ in range(5):
        with connection.cursor() as cursor:
            for name in (day_name(table, 2) for table in PARTITIONED):
                cursor.execute(f"DROP TABLE IF EXISTS {name}")
        together(prepare_partitions, prepare_partitions, prepare_partitions)
        assert day_name("capataz_event", 2) in partitions("capataz_event")


def test_the_callers_transaction_gets_its_own_patience_back() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = 7000")
        prepare_partitions()
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("7s",)


def test_a_dump_that_holds_a_day_keeps_it_from_being_dropped_and_nobody_from_working(
    transactional_db: None, session: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TABLE_PATIENCE", 50)
    day = timezone.now().date() - 200 * DAY
    old = day_name("capataz_event", -200)
    values = f"FOR VALUES FROM ('{day}') TO ('{day + DAY}')"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {old} PARTITION OF capataz_event {values}")
        with session.transaction():
            session.execute(f"LOCK TABLE {old} IN ACCESS SHARE MODE")
            prune()
            assert old in partitions("capataz_event")
        prune()
        assert old not in partitions("capataz_event")


def test_a_day_whose_rows_came_before_its_partition_stays_where_they_are() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {day_name('capataz_event', 1)}")
        tomorrow = "now() + interval '1 day', 'x', 'x', '{}'"
        cursor.execute(f"INSERT INTO capataz_event (at, kind, subject, detail) VALUES ({tomorrow})")
        prepare_partitions()
        cursor.execute("SELECT count(*) FROM capataz_event_rest")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize("table", PARTITIONED)
def test_partitions_older_than_the_longest_retention_are_dropped(table: str, settings: Any) -> None:
    settings.KEEP_TASK_LOGS_DAYS = 90
    with connection.cursor() as cursor:
        for days in (-200, -91, -89):
            day = timezone.now().date() + days * DAY
            values = f"FOR VALUES FROM ('{day}') TO ('{day + DAY}')"
            cursor.execute(f"CREATE TABLE {day_name(table, days)} PARTITION OF {table} {values}")
    prune(dead=90 * DAY)
    assert day_name(table, -200) not in partitions(table)
    assert {day_name(table, -89), day_name(table, 0), f"{table}_rest"} <= partitions(table)


def test_log_lines_have_a_retention_of_their_own(settings: Any) -> None:
    settings.KEEP_TASK_LOGS_DAYS = 10
    with connection.cursor() as cursor:
        for days in (-20, -9):
            day = timezone.now().date() + days * DAY
            values = f"FOR VALUES FROM ('{day}') TO ('{day + DAY}')"
            for table in PARTITIONED:
                cursor.execute(f"CREATE TABLE {day_name(table, days)} PARTITION OF {table} {values}")
    prune(dead=90 * DAY)
    kept = {table: day_name(table, -20) in partitions(table) for table in PARTITIONED}
    assert kept == {"capataz_attempt": True, "capataz_event": True, "capataz_logline": False}
    assert day_name("capataz_logline", -9) in partitions("capataz_logline")
