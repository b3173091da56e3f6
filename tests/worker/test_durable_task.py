"""Functions written for Celery as durable tasks: what they were promised there holds for them here."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from celery import Celery, current_app
from celery.result import AsyncResult
from django.conf import settings
from django.db import transaction
from django_celery_results.models import TaskResult

from capataz import DurableTask, handlers
from capataz.errors import ConfigurationError, InvalidSubmission
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Task
from tests import workload
from tests.workload import notes


def name(function: str) -> str:
    return f"tests.workload.{function}"


def record() -> str:
    return f"durable-{uuid.uuid4().hex}.log"


def test_every_way_of_calling_leaves_a_row(transactional_db):
    workload.durable_add.delay(1, y=2)
    workload.durable_add.apply_async((1,), {"y": 2}, countdown=60)
    workload.durable_add.s(1).delay(y=2)
    workload.durable_add.si(1, y=2).apply_async()
    current_app.send_task(name("durable_add"), args=[1], kwargs={"y": 2})
    submit(name("durable_add"), {"args": [1], "kwargs": {"y": 2}})
    rows = Task.objects.filter(type=name("durable_add"))
    assert [row.payload for row in rows] == [{"args": [1], "kwargs": {"y": 2}}] * 6
    assert sorted(row.state for row in rows) == ["queued"] * 5 + ["scheduled"]


def test_a_call_that_is_rolled_back_was_none(transactional_db):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        workload.durable_add.delay(1)
        raise ZeroDivisionError
    assert Task.objects.count() == 0


def test_a_setting_makes_a_task_durable_and_leaves_its_own_base(transactional_db):
    assert handlers.is_registered(name("made_durable"))
    assert isinstance(workload.made_durable._get_current_object(), workload.Audited)
    assert not handlers.is_registered(name("plain_add"))


def test_arguments_that_do_not_fit_are_refused_at_every_door(transactional_db):
    with pytest.raises(TypeError):
        workload.durable_add.delay(1, 2, 3)
    with pytest.raises(InvalidSubmission, match="data"):
        submit(name("durable_add"), {"args": [1, 2, 3]})
    with pytest.raises(InvalidSubmission, match="data/arguments"):
        submit(name("durable_add"), {"arguments": [1]})
    with pytest.raises(InvalidSubmission):
        workload.durable_same.delay(object())
    with pytest.raises(InvalidSubmission):
        workload.durable_same.delay(float("nan"))
    with pytest.raises(InvalidSubmission):
        submit(name("durable_same"), {"args": [{"__type__": "nonsense", "__value__": 1}]})
    assert Task.objects.count() == 0


def test_in_a_canvas_too_a_task_declares_its_options_and_a_call_overrides_them(transactional_db):
    times = workload.durable_product
    result = (times.s(1, 2) | times.s(3).set(priority=0, removeOnComplete=0))()
    for task_id in (times.delay(1, 2).id, result.parent.id, result.id):
        row = Task.objects.get(pk=task_id)
        assert row.expires_at is not None
        assert row.priority == (0 if task_id == result.id else 8)
    assert Task.objects.get(pk=result.id).keep == {"succeeded": {"count": 0}}


@pytest.mark.parametrize(
    "following", [((3, 4), {}), ((), {"z": 1}), ((), {"x": 1}), (({1, 2},), {})], ids=str
)
def test_in_a_canvas_arguments_have_to_fit_what_is_put_before_them(transactional_db, following):
    args, kwargs = following
    with pytest.raises(InvalidSubmission, match="nodes/"):
        (workload.durable_product.s(1, 2) | workload.durable_product.s(*args, **kwargs))()
    assert Task.objects.count() == 0


def test_a_function_is_still_a_function():
    assert workload.durable_add(2, 3) == 5
    assert workload.durable_add.apply((2, 3)).get() == 5


def test_plain_celery_may_not_map_over_a_durable_task():
    with pytest.raises(InvalidSubmission):
        workload.durable_add.map([1, 2]).delay()


@pytest.fixture
def work(platform, eventually):
    """Run these calls, and return their rows when they have ended."""

    def run(*results):
        platform.start_dispatcher()
        platform.start_worker("2,2")
        ids = [result.id for result in results]
        ended = Task.objects.filter(pk__in=ids, finished_at__isnull=False)
        eventually(lambda: ended.count() == len(ids))
        return [Task.objects.get(pk=each) for each in ids]

    return run


def test_durable_tasks_keep_what_celery_promised_them(work):
    when, key = datetime(2030, 1, 31, 12, tzinfo=UTC), uuid.uuid4()
    files = {each: record() for each in ("enough", "late", "never", "flaky", "other", "about")}
    calls = {
        "add": workload.durable_add.delay("a", y="b"),
        "kinds": workload.durable_same.delay(
            1, None, [True, {"é": 1.5}], when, key, Decimal("1.10"), when=when.date()
        ),
        "about": workload.durable_about_me.apply_async((files["about"],), {"key": 7}, priority=9),
        "enough": workload.made_durable.delay(files["enough"], succeed_at=1),
        "late": workload.made_durable.delay(files["late"], succeed_at=4, max_retries=4, countdown=0),
        "never": workload.made_durable.delay(files["never"]),
        "flaky": workload.durable_flaky.delay(files["flaky"]),
        "other": workload.durable_flaky.delay(files["other"], "other"),
        "slow": workload.durable_slow.delay(),
        "ignore": workload.durable_ends.delay("ignore"),
        "failed": workload.durable_ends.delay("failed"),
        "reject": workload.durable_ends.delay("reject"),
        "quiet": workload.durable_ends.delay("return"),
    }
    rows = dict(zip(calls, work(*calls.values()), strict=True))
    states = {each: row.state for each, row in rows.items()}
    assert states == dict.fromkeys(calls, "succeeded") | dict.fromkeys(
        ["never", "other", "failed", "reject"], "dead"
    )

    assert calls["add"].get() == "ab"
    assert calls["kinds"].get() == [
        repr((1, None, [True, {"é": 1.5}], when, key, Decimal("1.10"))),
        repr([("when", when.date())]),
    ]
    about = calls["about"].get()
    assert about == {
        "id": calls["about"].id,
        "retries": 0,
        "args": [files["about"]],
        "kwargs": {"key": 7},
        "called_directly": False,
        "exchange": "",
        "routing_key": "bulk",
        "priority": 9,
        "redelivered": False,
        "name": "Durable.About-Me",
    }

    assert notes(files["enough"]) == ["try 0", "retries 0", "try 1"]
    assert calls["late"].get() == 4, "a limit that retry() is given counts, not that of the task"
    assert notes(files["never"]) == ["try 0", "retries 0", "try 1", "retries 1", "try 2", "failed Flaky"]
    assert rows["never"].error == "Flaky: not yet"
    assert calls["never"].traceback.rstrip().endswith("Flaky: not yet")
    assert calls["flaky"].get() == 3
    assert notes(files["other"]) == ["other"], "what is not to be tried again is not"

    assert calls["slow"].get() == "cleaned up"
    assert calls["ignore"].get() is None
    assert calls["quiet"].get() is None, "an ignored result is not kept"
    assert "said so" in rows["failed"].error
    assert "no use" in rows["reject"].error


def test_a_running_task_tells_its_state(platform, eventually, tmp_path):
    platform.start_dispatcher()
    platform.start_worker("1,1")
    gate = tmp_path / "gate"
    result = workload.durable_progress.delay(str(gate))
    eventually(lambda: AsyncResult(result.id).state == "PROGRESS")
    assert result.info == {"current": 30, "total": 40}
    eventually(lambda: Task.objects.get(pk=result.id).progress == 75)
    gate.touch()
    eventually(lambda: result.state == "SUCCESS")
    assert result.get() == "through"
    assert TaskResult.objects.get(task_id=result.id).status == "SUCCESS"


def test_retry_waits_as_long_as_it_says(platform, eventually):
    platform.start_dispatcher()
    platform.start_worker("1,1")
    result = workload.made_durable.delay(record(), countdown=4000)
    eventually(lambda: Task.objects.get(pk=result.id).state == "retrying")
    task, attempt = Task.objects.get(pk=result.id), Attempt.objects.get(task_id=result.id)
    assert 3990 < (task.run_at - attempt.finished_at).total_seconds() < 4010
    assert result.state == "RETRY"
    assert task.attempts == 1


def test_a_message_from_before_becomes_the_row_that_it_would_have_been(platform, eventually, broker):
    platform.start_dispatcher()
    file = record()
    plain = Celery(broker=settings.REDIS_URL, set_as_current=False)  # knows nothing of Capataz
    plain.conf.broker_transport_options = {"sep": ":"}
    sent = plain.send_task(name("made_durable"), [file], {"succeed_at": 1}, queue="default", countdown=0)
    refused = plain.send_task(name("made_durable"), [], queue="default")
    worker = platform.start_worker("1,1")
    eventually(lambda: Task.objects.filter(pk=sent.id, state="succeeded").exists())
    assert notes(file) == ["try 0", "retries 0", "try 1"]
    eventually(lambda: "cannot be a row" in worker.log.read_text())
    assert not Task.objects.filter(pk=refused.id).exists()
    eventually(lambda: not broker.exists("default") and not broker.exists("unacked"))


def do_nothing():
    pass


@pytest.fixture
def declare():
    """Declare a durable function with these options; returns its handler."""
    names = []

    def made(**options):
        names.append(f"testing.declared_{len(names)}")
        durable = current_app.task(base=DurableTask, name=names[-1], **options)(do_nothing)
        return durable.handler

    yield made
    for each in names:
        handlers._registry.pop(each, None)
        current_app.tasks.pop(each, None)


@pytest.mark.parametrize(
    ("rate_limit", "rate"),
    [
        ("100/m", "100/m"),
        ("10/s", "10/s"),
        ("5/h", "5/h"),
        (10, "864000/d"),
        (0.5, "43200/d"),
        ("1.5/m", "2160/d"),
    ],
)
def test_a_rate_limit_is_one_for_all_workers(declare, rate_limit, rate):
    assert [limit.rate for limit in declare(rate_limit=rate_limit).flow.limits] == [rate]
    assert declare().flow.limits == ()


@pytest.mark.parametrize("rate_limit", ["often", "5/x", -1, "0/s", 10**6])
def test_a_rate_limit_that_makes_no_sense_is_refused(declare, rate_limit):
    with pytest.raises(ConfigurationError, match="rate_limit of the durable task"):
        declare(rate_limit=rate_limit)
