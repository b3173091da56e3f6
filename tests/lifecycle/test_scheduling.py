"""Scheduling: a task for every due time of a schedule, exactly one."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from celery.schedules import schedule
from django.db import connection, transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from capataz.lifecycle import scheduling
from capataz.lifecycle.scheduling import LATE, Rule
from capataz.models import Event, Queue, Schedule, Task
from capataz.models.schedule import Missed, Overlap
from tests.lifecycle.stage import StagedWorker, release, together

DUE = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)

Make = Callable[..., Rule]


@pytest.fixture
def make(db: None) -> Make:
    """A schedule in the database, followed since ``DUE``, as a beat has read it."""

    def new(name: str = "nightly", every: timedelta = HOUR, **about: Any) -> Rule:
        interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="hours")
        one_off = about.get("one_off", False)
        task = PeriodicTask.objects.create(name=name, task="demo.echo", interval=interval, one_off=one_off)
        scheduling.meet([task.pk], ["on"], [DUE])
        rule = Rule(
            id=task.pk,
            name=name,
            type="demo.echo",
            args=[],
            kwargs={"message": "tick"},
            options={},
            schedule=schedule(every),
            last_due=DUE,
        )
        return replace(rule, **about)

    return new


def settle(*rules: Rule, now: datetime) -> set[int]:
    return scheduling.settle([due for rule in rules if (due := rule.settle(now))])


def mark(rule: Rule) -> datetime:
    return Schedule.objects.get(pk=rule.id).last_due


def events() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


# What is due.


def test_nothing_is_due_before_its_time(make: Make) -> None:
    rule = make()
    assert rule.next_due() == DUE + HOUR
    assert rule.settle(DUE + HOUR - timedelta(microseconds=1)) is None


def test_every_due_time_that_is_merely_late_is_submitted_for(make: Make) -> None:
    rule = make(every=timedelta(seconds=1), missed=Missed.SKIP)
    settle(rule, now=DUE + LATE)
    assert Task.objects.count() == LATE.total_seconds()


@pytest.mark.parametrize(
    ("policy", "down_for", "expected"),
    [
        (Missed.SKIP, 5 * HOUR + 10 * MINUTE, 0),
        (Missed.SKIP, 5 * HOUR, 1),  # the last one is on time
        (Missed.ONCE, 5 * HOUR + 10 * MINUTE, 1),
        (Missed.ONCE, 5 * HOUR, 1),
        (Missed.ALL, 5 * HOUR + 10 * MINUTE, 5),
        (Missed.ALL, 5000 * HOUR, 100),  # the limit
    ],
)
def test_after_a_downtime_the_schedules_own_policy_holds(
    make: Make, policy: str, down_for: timedelta, expected: int
) -> None:
    rule = make(missed=policy)
    settle(rule, now=DUE + down_for)
    assert Task.objects.count() == expected
    assert mark(rule) == DUE + down_for // HOUR * HOUR


def test_a_schedule_that_has_ended_is_due_no_more(make: Make) -> None:
    rule = make(ends=DUE + 3 * HOUR, missed=Missed.ALL)
    settle(rule, now=DUE + 10 * HOUR)
    assert Task.objects.count() == 2
    assert replace(rule, last_due=DUE + 2 * HOUR).next_due() is None


def test_what_was_due_before_the_end_is_not_forgotten_after_it(make: Make) -> None:
    rule = make(ends=DUE + 3 * HOUR, missed=Missed.ONCE)
    settle(rule, now=DUE + 10 * HOUR)
    assert Task.objects.count() == 1
    assert mark(rule) == DUE + 2 * HOUR


def test_a_grid_begins_at_the_start_time(make: Make) -> None:
    assert make(anchor=DUE + 7 * MINUTE).next_due() == DUE + 7 * MINUTE


# Settling.


def test_a_task_is_submitted_with_the_schedules_options(make: Make) -> None:
    rule = make(options={"queue": "email", "priority": 9}, expire_seconds=90)
    settle(rule, now=DUE + HOUR)
    task = Task.objects.get()
    assert (task.type, task.payload, task.queue, task.priority) == (
        "demo.echo",
        {"message": "tick"},
        "email",
        9,
    )
    assert (task.schedule_id, task.submitted_by) == (rule.id, "schedule nightly")
    assert task.expires_at == DUE + HOUR + timedelta(seconds=90)


def test_a_due_time_is_settled_once(make: Make) -> None:
    rule = make()
    assert settle(rule, now=DUE + HOUR) == {rule.id}
    assert settle(rule, now=DUE + HOUR) == set()
    assert Task.objects.count() == 1


def test_whoever_has_seen_an_older_mark_is_too_late_for_all_of_it(make: Make) -> None:
    rule = make(missed=Missed.ALL)
    settle(rule, now=DUE + 2 * HOUR)
    assert settle(rule, now=DUE + 3 * HOUR) == set()
    assert settle(replace(rule, last_due=mark(rule)), now=DUE + 3 * HOUR) == {rule.id}
    assert Task.objects.count() == 3


def test_schedules_are_settled_apart_from_each_other(make: Make) -> None:
    one, other = make("one"), make("other")
    settle(one, now=DUE + HOUR)
    assert settle(one, other, now=DUE + HOUR) == {other.id}


def test_pruning_the_task_does_not_make_its_due_time_come_again(make: Make) -> None:
    rule = make()
    settle(rule, now=DUE + HOUR)
    Task.objects.all().delete()
    assert settle(rule, now=DUE + HOUR) == set()


def test_a_task_that_is_refused_is_told_and_holds_nobody_up(make: Make) -> None:
    bad, good = make("bad", type="demo.sleep", kwargs={"seconds": -1}), make("good")
    assert settle(bad, good, now=DUE + HOUR) == {bad.id, good.id}
    assert Task.objects.get().schedule_id == good.id
    event = Event.objects.get(kind="schedule.refused")
    assert event.subject == "bad"
    assert "seconds" in event.detail["error"]


def test_a_full_queue_refuses_a_schedule_which_goes_on(make: Make) -> None:
    queue = Queue.objects.create(name="default", waiting_limit=1)
    fits, refused, other = make("fits"), make("refused"), make("other", type="cleanup", kwargs={})
    assert settle(fits, refused, other, now=DUE + HOUR) == {fits.id, refused.id, other.id}
    assert set(Task.objects.values_list("schedule_id", flat=True)) == {fits.id, other.id}
    event = Event.objects.get(kind="schedule.refused")
    assert event.subject == "refused"
    assert "queue default has no room" in event.detail["error"]
    Queue.objects.filter(pk=queue.pk).update(waiting_limit=2)
    settle(replace(refused, last_due=DUE + HOUR), now=DUE + 2 * HOUR)
    assert Task.objects.filter(schedule_id=refused.id).exists()


def test_an_option_that_only_a_message_could_have_is_told_as_well(make: Make) -> None:
    assert settle(make(options={"headers": {"a": 1}}), make("sound", options={"headers": {}}), now=DUE + HOUR)
    assert events() == ["schedule.refused"]
    assert Task.objects.count() == 1


def test_arguments_that_no_payload_can_be_are_told_as_well(make: Make) -> None:
    assert settle(make(args=[1, 2]), now=DUE + HOUR)
    assert events() == ["schedule.refused"]


def test_what_is_rolled_back_is_still_due(make: Make) -> None:
    rule = make()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        settle(rule, now=DUE + HOUR)
        raise ZeroDivisionError
    assert settle(rule, now=DUE + HOUR) == {rule.id}


def test_a_due_time_whose_task_could_not_be_inserted_is_still_due(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_: Any) -> None:
        raise ZeroDivisionError

    rule = make()
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(scheduling, "_submit", break_down)
        settle(rule, now=DUE + HOUR)
    assert settle(rule, now=DUE + HOUR) == {rule.id}


def test_what_another_beat_settles_just_now_is_not_waited_for(
    make: Make, transactional_db: None, session: psycopg.Connection
) -> None:
    busy, free = make("busy"), make("free")
    with session.transaction(), transaction.atomic(), connection.cursor() as cursor:
        session.execute("SELECT FROM capataz_schedule WHERE periodic_task_id = %s FOR UPDATE", [busy.id])
        cursor.execute("SET LOCAL lock_timeout = 1")
        assert settle(busy, free, now=DUE + HOUR) == {free.id}


def test_a_schedule_for_one_time_is_switched_off(make: Make) -> None:
    rule = make(one_off=True)
    settle(rule, now=DUE + HOUR)
    task = PeriodicTask.objects.get()
    assert (task.enabled, task.total_run_count) == (False, 1)
    assert task.last_run_at is not None


@pytest.mark.django_db(transaction=True)
def test_beats_at_once_settle_every_due_time_once(make: Make) -> None:
    rules = [make(f"schedule {number}", every=MINUTE) for number in range(20)]
    times = [DUE + number * MINUTE for number in range(1, 11)]

    def beat() -> None:
        for now in times:
            seen = [replace(rule, last_due=mark(rule)) for rule in rules]
            settle(*seen, now=now)

    together(beat, beat, beat)
    last = [replace(rule, last_due=mark(rule)) for rule in rules]
    settle(*last, now=times[-1])
    assert {mark(rule) for rule in rules} == {times[-1]}
    assert Task.objects.count() == len(rules) * len(times)


# Overlap.


@pytest.mark.parametrize(("policy", "expected"), [(Overlap.ALLOW, 3), (Overlap.SKIP, 1), (Overlap.QUEUE, 1)])
def test_an_overlap_with_what_waits(make: Make, policy: str, expected: int) -> None:
    rule = make(overlap=policy)
    for hours in (1, 2, 3):
        settle(replace(rule, last_due=mark(rule)), now=DUE + hours * HOUR)
    assert Task.objects.count() == expected
    assert events().count("schedule.overlapped") == 3 - expected
    assert mark(rule) == DUE + 3 * HOUR


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("policy", "expected"), [(Overlap.SKIP, 1), (Overlap.QUEUE, 2)])
def test_an_overlap_with_what_runs(make: Make, worker: StagedWorker, policy: str, expected: int) -> None:
    rule = make(overlap=policy)
    settle(rule, now=DUE + HOUR)
    [grant] = worker.run(Task.objects.get())
    for hours in (2, 3):
        settle(replace(rule, last_due=mark(rule)), now=DUE + hours * HOUR)
    assert Task.objects.count() == expected
    worker.end([grant])
    Task.objects.filter(state="queued").delete()
    settle(replace(rule, last_due=mark(rule)), now=DUE + 4 * HOUR)
    assert Task.objects.filter(state="queued").count() == 1


def test_of_several_due_times_one_is_left_where_tasks_must_not_overlap(make: Make) -> None:
    settle(make(overlap=Overlap.SKIP, missed=Missed.ALL), now=DUE + 5 * HOUR)
    assert Task.objects.count() == 1
    assert Event.objects.get(kind="schedule.overlapped").detail["leftOut"] == 4


def test_of_several_due_times_of_a_unique_task_the_first_is_accepted(make: Make) -> None:
    options = {"headers": {"unique": {"mode": "reject"}}}
    settle(make(options=options, missed=Missed.ALL), now=DUE + 3 * HOUR)
    assert Task.objects.count() == 1
    assert events() == ["schedule.refused"] * 2


def test_an_ended_task_overlaps_with_nothing(make: Make) -> None:
    rule = make(overlap=Overlap.SKIP)
    settle(rule, now=DUE + HOUR)
    release(Task.objects.get())
    Task.objects.update(state="succeeded", released_at=None, finished_at=DUE)
    settle(replace(rule, last_due=mark(rule)), now=DUE + 2 * HOUR)
    assert Task.objects.count() == 2


# Meeting.


def test_a_schedule_is_followed_from_the_moment_that_it_was_first_seen(make: Make) -> None:
    rule = make()
    scheduling.meet([rule.id], ["on"], [DUE + HOUR])
    assert mark(rule) == DUE


def test_another_rule_begins_anew(make: Make) -> None:
    rule = make()
    scheduling.meet([rule.id], ["off"], [DUE + HOUR])
    assert mark(rule) == DUE + HOUR


def test_a_schedule_that_is_gone_is_not_met(make: Make) -> None:
    scheduling.meet([123456], ["on"], [DUE])
    assert not Schedule.objects.exists()
