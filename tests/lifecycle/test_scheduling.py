"""Scheduling: a task for every due time of a schedule, exactly one."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import crontab, schedule
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st

from capataz.errors import InvalidSubmission
from capataz.lifecycle.scheduling import AHEAD, database_now, due_time, fire
from capataz.models import ScheduleMark, Task
from tests.lifecycle.stage import together

DUE = datetime(2026, 1, 1, tzinfo=UTC)

moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
intervals = st.integers(1, 7 * 86400).map(lambda seconds: timedelta(seconds=seconds))


def fire_echo(name: str = "nightly", due: datetime = DUE, **options: object) -> Task | None:
    return fire(name, due, "demo.echo", [], {"message": "tick"}, options)


# The grid.


@given(moments, intervals)
def test_a_due_time_is_the_last_point_of_the_grid(moment: datetime, every: timedelta) -> None:
    due = due_time(schedule(every), moment)
    assert due <= moment < due + every
    assert (due - datetime(1970, 1, 1, tzinfo=UTC)) % every == timedelta()


@given(moments, intervals, st.integers(0, 10**6))
def test_two_beats_name_the_same_point_whatever_they_remember(
    moment: datetime, every: timedelta, later: int
) -> None:
    due = due_time(schedule(every), moment)
    other = due + every * later / (10**6 + 1)
    assert due_time(schedule(every), other) == due


@given(moments)
def test_a_crontab_fires_at_whole_minutes(moment: datetime) -> None:
    due = due_time(crontab(), moment)
    assert (due.second, due.microsecond) == (0, 0)
    assert due - AHEAD <= moment < due + timedelta(minutes=1)  # beat's clock may be a little ahead


@given(moments)
def test_a_due_time_belongs_to_itself(moment: datetime) -> None:
    due = due_time(crontab(), moment)
    assert due_time(crontab(), due) == due


def test_a_schedule_of_another_kind_fires_by_the_second() -> None:
    moment = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    assert due_time(object(), moment) == moment.replace(microsecond=0)


@pytest.mark.django_db
def test_without_a_moment_the_databases_clock_counts() -> None:
    before = database_now()
    assert before - timedelta(seconds=1) <= due_time(schedule(timedelta(seconds=1))) <= database_now()


# Firing.


@pytest.mark.django_db
def test_a_fire_submits_the_task_with_its_options() -> None:
    task = fire_echo(queue="email", priority=9)
    assert task is not None
    assert (task.type, task.payload, task.queue, task.priority) == (
        "demo.echo",
        {"message": "tick"},
        "email",
        9,
    )


@pytest.mark.django_db
def test_a_due_time_fires_once() -> None:
    assert fire_echo()
    assert fire_echo() is None
    assert Task.objects.count() == 1


@pytest.mark.django_db
def test_the_next_due_time_fires_again_and_an_earlier_one_never() -> None:
    fire_echo(due=DUE)
    assert fire_echo(due=DUE + timedelta(minutes=1))
    assert fire_echo(due=DUE - timedelta(minutes=1)) is None


@pytest.mark.django_db
def test_schedules_fire_apart_from_each_other() -> None:
    assert fire_echo("one")
    assert fire_echo("other")


@pytest.mark.django_db
def test_pruning_the_task_does_not_make_its_due_time_fire_again() -> None:
    fire_echo()
    Task.objects.all().delete()
    assert fire_echo() is None


@pytest.mark.django_db
def test_a_fire_that_is_refused_leaves_its_due_time_open() -> None:
    with pytest.raises(InvalidSubmission):
        fire("nightly", DUE, "demo.sleep", [], {"seconds": -1}, {})
    assert not ScheduleMark.objects.exists()
    assert fire_echo()


@pytest.mark.django_db
def test_a_fire_that_is_rolled_back_leaves_its_due_time_open() -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        fire_echo()
        raise ZeroDivisionError
    assert fire_echo()


@pytest.mark.django_db(transaction=True)
def test_two_beats_at_once_fire_every_due_time_once() -> None:
    dues = [DUE + timedelta(minutes=number) for number in range(20)]

    def beat() -> list[Task]:
        return [task for due in dues if (task := fire_echo(due=due))]

    fired = [task.pk for tasks in together(beat, beat) for task in tasks]
    assert len(fired) == len(set(fired)) == Task.objects.count() == 20
