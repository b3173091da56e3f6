"""Beat: several of them, schedules that change, a database and a broker that come and go."""

from collections.abc import Callable
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import psycopg
import pytest
from celery import current_app
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_results.models import TaskResult
from kombu.exceptions import OperationalError as BrokerError

from capataz import beat as beat_module
from capataz.beat import Scheduler
from capataz.database import conninfo
from capataz.lifecycle import scheduling
from capataz.models import Event as Happening
from capataz.models import Schedule, Task
from tests.lifecycle.stage import together
from tests.processes import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def new_beat(transactional_db: None) -> Callable[[], Scheduler]:
    """Beats that have read the schedules once, each with its own memory."""

    def make() -> Scheduler:
        beat = Scheduler(app=current_app._get_current_object(), max_interval=1)
        beat.tick()
        return beat

    return make


def every_second(name: str = "often", task: str = "demo.echo", **about: Any) -> PeriodicTask:
    interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
    return PeriodicTask.objects.create(name=name, task=task, interval=interval, **about)


def wind_back(seconds: float, **which: Any) -> None:
    """As if these schedules had last been settled so long ago."""
    Schedule.objects.filter(**which).update(last_due=Now() - timedelta(seconds=seconds))


def soon() -> datetime:
    """A whole second that nobody has reached yet."""
    return timezone.now().replace(microsecond=0) + timedelta(seconds=3)


def mark(name: str = "often") -> int:
    """The last due time of a schedule that is settled, in seconds."""
    return int(Schedule.objects.get(periodic_task__name=name).last_due.timestamp())


def until_ticked(beat: Scheduler, eventually: Any, condition: Callable[[], Any]) -> None:
    def ticked() -> Any:
        beat.tick()
        return condition()

    eventually(ticked)


def test_what_is_due_is_submitted_again_and_again(new_beat: Any, eventually: Any) -> None:
    every_second()
    beat = new_beat()
    until_ticked(beat, eventually, lambda: Task.objects.count() >= 3)
    assert {task.submitted_by for task in Task.objects.all()} == {"schedule often"}


def test_a_beat_sleeps_until_something_is_due_and_no_longer(new_beat: Any) -> None:
    assert new_beat().tick() == 1.0
    every_second()
    beat = new_beat()
    assert 0 <= beat.tick() <= 1.0


def test_three_beats_that_work_at_once_leave_no_second_out_and_do_none_twice(
    new_beat: Any, eventually: Any
) -> None:
    start = soon()
    every_second(start_time=start)
    beats = [new_beat() for _ in range(3)]

    def work() -> bool:
        together(*(beat.tick for beat in beats))
        return Task.objects.count() >= 5

    eventually(work)
    assert Task.objects.count() == mark() - start.timestamp() + 1


def test_a_beat_that_was_alone_for_a_while_finds_what_others_have_settled(
    new_beat: Any, eventually: Any
) -> None:
    every_second()
    one, other = new_beat(), new_beat()
    until_ticked(one, eventually, lambda: Task.objects.count() >= 2)
    before = Task.objects.count()
    settled = mark()
    assert before == Task.objects.count()
    until_ticked(other, eventually, lambda: Task.objects.count() > before)
    assert Task.objects.count() == before + mark() - settled


def test_a_new_schedule_is_followed_without_a_restart(new_beat: Any, eventually: Any) -> None:
    beat = new_beat()
    every_second()
    until_ticked(beat, eventually, Task.objects.exists)


def test_a_schedule_that_is_switched_off_rests_and_makes_nothing_up(new_beat: Any, eventually: Any) -> None:
    task = every_second()
    beat = new_beat()
    until_ticked(beat, eventually, Task.objects.exists)
    task.refresh_from_db()
    task.enabled = False
    task.save()
    beat.tick()
    before = Task.objects.count()
    wind_back(30)
    beat.tick()
    assert Task.objects.count() == before
    task.enabled = True
    task.save()
    beat.tick()
    assert Task.objects.count() <= before + 1


def test_a_schedule_that_is_deleted_is_forgotten(new_beat: Any) -> None:
    task = every_second()
    beat = new_beat()
    task.delete()
    wind_back(30)
    beat.tick()
    assert not Task.objects.exists()


def test_a_clocked_schedule_runs_once_and_is_switched_off(new_beat: Any, eventually: Any) -> None:
    soon = ClockedSchedule.objects.create(clocked_time=timezone.now() + timedelta(seconds=1))
    PeriodicTask.objects.create(name="once", task="demo.echo", clocked=soon, one_off=True)
    beat = new_beat()
    until_ticked(beat, eventually, Task.objects.exists)
    beat.tick()
    assert Task.objects.count() == 1
    assert not PeriodicTask.objects.get(name="once").enabled


def test_a_crontab_in_a_time_zone_is_followed(new_beat: Any) -> None:
    minute = CrontabSchedule.objects.create(timezone="Asia/Kathmandu")
    PeriodicTask.objects.create(name="minutely", task="demo.echo", crontab=minute)
    beat = new_beat()
    wind_back(59, periodic_task__name="minutely")
    new_beat()
    assert Task.objects.count() in (1, 2)
    assert beat.tick() <= 1.0


def test_faulty_schedules_hold_nobody_up(new_beat: Any, eventually: Any) -> None:
    every_second("no json", kwargs="{")
    every_second("no such payload", task="demo.sleep", kwargs='{"seconds": -1}')
    every_second("nobody knows it", task="no.such.task")
    for number, (args, kwargs, headers) in enumerate(
        [("5", "{}", "{}"), ('"x"', "{}", "{}"), ("[]", "[1]", "{}"), ("[]", "7", "{}"), ("[]", "{}", "[1]")]
    ):
        every_second(f"wrong kind {number}", args=args, kwargs=kwargs, headers=headers)
    every_second("a stranger's validation", task="testing.bad_validator", kwargs='{"x": 1}')
    every_second("plain, without its arguments", task="tests.workload.plain_add")
    every_second("plain, to no queue", task="tests.workload.plain_add", args="[1, 2]", queue="no-such-queue")
    every_second("good")
    beat = new_beat()
    until_ticked(beat, eventually, lambda: Task.objects.count() >= 2)
    assert {task.submitted_by for task in Task.objects.all()} == {"schedule good"}
    refused = set(Happening.objects.filter(kind="schedule.refused").values_list("subject", flat=True))
    assert refused >= {"no such payload", "a stranger's validation", "plain, without its arguments"}


def test_a_schedule_that_is_made_while_beat_reads_is_followed_too(
    new_beat: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, meet = new_beat(), scheduling.meet

    def meet_and_be_late(*columns: Any) -> None:
        meet(*columns)
        if not PeriodicTask.objects.filter(name="late").exists():
            every_second("late")

    monkeypatch.setattr(scheduling, "meet", meet_and_be_late)
    every_second("early")
    submitters = Task.objects.values_list("submitted_by", flat=True).all
    until_ticked(beat, eventually, lambda: {"schedule early", "schedule late"} <= set(submitters()))


def test_a_type_that_nobody_here_knows_stays_due(new_beat: Any) -> None:
    """As in a deploy: the other beat, or the next one, knows it."""
    task = every_second("unknown", task="no.such.task")
    new_beat()
    wind_back(30, periodic_task=task)
    before = Schedule.objects.get(pk=task.pk).last_due
    new_beat()
    assert Schedule.objects.get(pk=task.pk).last_due == before


def test_two_thousand_schedules_that_are_due_at_once_are_settled_in_one_look_by_a_few_statements(
    new_beat: Any,
) -> None:
    interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="days")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"daily {number}", task="demo.echo", interval=interval) for number in range(2000)
    )
    new_beat()
    wind_back(86_400, periodic_task__name__startswith="daily")
    with CaptureQueriesContext(connection) as asked:
        new_beat()
    assert Task.objects.count() == 2000
    assert Task.objects.values("schedule_id").distinct().count() == 2000
    assert len(asked) < 60


def test_a_broker_that_is_away_is_not_asked_anew_for_each_plain_task(
    new_beat: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"plain {number}" for number in range(5)]
    for name in names:
        every_second(name, task="tests.workload.plain_add", args="[2, 3]")
    beat, asked = new_beat(), []

    def fail(*_: Any, **__: Any) -> None:
        eventually(lambda: beat._sender._wanted.qsize() == 4)
        asked.append("asked")
        raise BrokerError("away")

    with monkeypatch.context() as away:
        away.setattr(current_app.tasks["tests.workload.plain_add"], "apply_async", fail)
        wind_back(2)
        beat._read_at = None
        beat.tick()
        eventually(lambda: beat._sender._sent.qsize() == 5)
        assert asked == ["asked"]
    sent: list[str] = []
    monkeypatch.setattr(
        current_app.tasks["tests.workload.plain_add"],
        "apply_async",
        lambda *_, headers, **__: sent.append(headers["periodic_task_name"]),
    )
    until_ticked(beat, eventually, lambda: set(sent) == set(names))


def test_reading_again_builds_only_what_says_something_else(
    new_beat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        every_second(f"number {number}")
    beat, build, built = new_beat(), beat_module._rule, []

    def build_and_note(task: PeriodicTask, *about: Any) -> Any:
        built.append(task.name)
        return build(task, *about)

    monkeypatch.setattr(beat_module, "_rule", build_and_note)
    beat._read()
    assert built == []
    PeriodicTask.objects.filter(name="number 3").update(kwargs='{"message": "new"}')
    IntervalSchedule.objects.create(every=5, period="seconds")
    beat._read()
    assert built == ["number 3"]
    IntervalSchedule.objects.filter(every=1).update(every=2)
    beat._read()
    assert len(built) == 6


def test_a_broker_that_hangs_holds_no_schedule_of_a_handler_up(
    new_beat: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, sent = Event(), []

    def hang(*_: Any, **__: Any) -> None:
        sent.append("asked")
        assert answers.wait(PATIENCE)
        sent.append("done")

    monkeypatch.setattr(current_app.tasks["tests.workload.plain_add"], "apply_async", hang)
    every_second("plain", task="tests.workload.plain_add", args="[2, 3]")
    every_second()
    beat = new_beat()
    until_ticked(beat, eventually, lambda: sent and Task.objects.count() >= 3)
    assert sent == ["asked"]
    before = mark("plain")
    answers.set()
    until_ticked(beat, eventually, lambda: mark("plain") > before and not beat._sender.is_busy)
    assert "done" in sent


def test_a_schedule_that_runs_once_does_so_however_many_beats_know_it(new_beat: Any, eventually: Any) -> None:
    every_second("once", one_off=True)
    every_second("often")
    beats = [new_beat(), new_beat()]

    def ticked() -> Any:
        for beat in beats:
            beat.tick()
        return Task.objects.filter(submitted_by="schedule often").count() >= 4

    eventually(ticked)
    assert Task.objects.filter(submitted_by="schedule once").count() == 1


def test_a_periodic_task_that_somebody_is_changing_holds_no_other_one_up(
    new_beat: Any, eventually: Any
) -> None:
    for name in ("changing", "other"):
        every_second(name)
    beat = new_beat()
    with psycopg.connect(conninfo()) as somebody:
        somebody.execute(
            "UPDATE django_celery_beat_periodictask SET description = 'x' WHERE name = 'changing'"
        )
        submitters = Task.objects.values_list("submitted_by", flat=True).all
        until_ticked(beat, eventually, lambda: "schedule other" in submitters())
        assert "schedule changing" not in submitters()
    until_ticked(beat, eventually, lambda: "schedule changing" in submitters())


@pytest.mark.parametrize("change", [{"enabled": False}, {"kwargs": "[1"}])
def test_what_was_read_anew_while_it_was_being_sent_is_as_it_was_read(
    new_beat: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    answers, asked = Event(), []

    def hang(*_: Any, headers: dict[str, Any], **__: Any) -> None:
        asked.append(headers["periodic_task_name"])
        assert answers.wait(PATIENCE)

    monkeypatch.setattr(current_app.tasks["tests.workload.plain_add"], "apply_async", hang)
    names = {"one", "other"}
    for name in names:
        every_second(name, task="tests.workload.plain_add", args="[2, 3]")
    beat = new_beat()
    until_ticked(beat, eventually, lambda: asked and beat._sender._wanted.qsize() == 1)
    [changed] = names - {*asked}
    PeriodicTask.objects.filter(name=changed).update(**change)
    beat._read_at = None
    beat.tick()
    answers.set()
    until_ticked(beat, eventually, lambda: asked.count(asked[0]) >= 3 and not beat._sender.is_busy)
    # What was on its way when it was given other arguments has gone with the old ones.
    assert asked.count(changed) <= len(change.keys() - {"enabled"})


def test_a_database_that_is_away_is_waited_for(new_beat: Any, eventually: Any, restart_postgres: Any) -> None:
    every_second()
    beat = new_beat()
    restart_postgres()
    until_ticked(beat, eventually, Task.objects.exists)


def test_plain_tasks_are_sent_once_by_beats_at_once(platform: Any, eventually: Any) -> None:
    platform.start_worker("1,1")
    start = soon()
    every_second("plain", task="tests.workload.plain_add", args="[2, 3]", start_time=start)
    beats = [Scheduler(app=current_app._get_current_object(), max_interval=1) for _ in range(3)]
    for beat in beats:
        beat.tick()

    def sent() -> bool:
        together(*(beat.tick for beat in beats))
        return TaskResult.objects.filter(status="SUCCESS").count() >= 2

    eventually(sent)
    PeriodicTask.objects.update(enabled=False)
    points = mark("plain") - start.timestamp() + 1
    eventually(lambda: TaskResult.objects.filter(status="SUCCESS").count() >= points)
    assert TaskResult.objects.filter(periodic_task_name="plain").count() == points
