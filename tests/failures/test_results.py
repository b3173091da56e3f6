"""Handlers that misbehave harm their own task and nobody else's."""

import pytest
from django.db import connection
from django_celery_results.models import TaskResult

from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Task


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nul", "U+0000"),
        ("nan", "not JSON compliant"),
        ("infinity", "not JSON compliant"),
        ("surrogate", "lone surrogate"),
        ("huge", "bytes of JSON"),
        ("object", "not JSON serializable"),
        ("bytes", "not JSON serializable"),
        ("key", "keys must be"),
        ("cycle", "Circular reference"),
        ("deep", "nested too deeply"),
    ],
)
def test_what_cannot_be_stored_is_refused(kind, says):
    from capataz import jsontext
    from tests.workload import NASTY

    with pytest.raises(ValueError, match=says.replace("+", r"\+")):
        jsontext.dumps(NASTY[kind](), limit=1_000_000)


def test_a_result_that_cannot_be_stored_ends_one_task_and_delays_nobody(platform, records, eventually):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    kinds = ["nul", "nan", "infinity", "surrogate", "huge", "object", "bytes", "key", "cycle", "deep"]
    tasks = {kind: submit("testing.nasty", {"kind": kind}) for kind in kinds}
    large = submit("testing.nasty", {"kind": "large"})
    records.submit(50)
    eventually(records.all_succeeded)
    eventually(lambda: Task.objects.filter(state="dead").count() == len(kinds))
    for kind, task in tasks.items():
        task.refresh_from_db()
        assert task.error.startswith("the result cannot be stored: "), kind
    eventually(lambda: Task.objects.get(pk=large.pk).state == "succeeded")
    assert len(Task.objects.get(pk=large.pk).result) == 900_000


@pytest.fixture
def poison_result(transactional_db):
    """Make the task results of one type impossible to store, whatever the task itself ends with."""
    table = "django_celery_results_taskresult"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT poison CHECK (task_name <> 'testing.flaky')")
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT poison")


def test_a_task_result_that_cannot_be_stored_costs_only_itself(platform, poison_result, records, eventually):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    records.submit(50)
    lucky = submit("testing.flaky", {"times": 0})
    dead = submit("testing.flaky", {"times": 9}, max_attempts=1)
    eventually(records.all_succeeded)
    eventually(
        lambda: Task.objects.filter(pk__in=[lucky.pk, dead.pk], finished_at__isnull=False).count() == 2
    )
    lucky.refresh_from_db()
    dead.refresh_from_db()
    assert (lucky.state, lucky.result, dead.state) == ("succeeded", 1, "dead")
    assert "RuntimeError" in dead.error
    assert TaskResult.objects.filter(status="SUCCESS").count() == 50


MISBEHAVIOUR = [
    ("exit", "dead", "SystemExit"),
    ("keyboard", "dead", "KeyboardInterrupt"),
    ("unprintable", "dead", "Unprintable"),
    ("discard", "dead", "not worth it"),
    ("hang_politely", "succeeded", None),
    ("hang", "dead", "hard time limit of 2 s exceeded"),
    ("stuck", "dead", "hard time limit of 2 s exceeded"),
    ("stdout", "succeeded", None),
    ("nul_error", "dead", "ValueError"),
    ("thread", "succeeded", None),
]


def test_misbehaviour_has_a_readable_end(platform, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    for how, state, says in MISBEHAVIOUR:
        task = submit("testing.misbehave", {"how": how})
        eventually(lambda task=task: Task.objects.get(pk=task.pk).is_final)
        task.refresh_from_db()
        assert task.state == state, how
        if says:
            assert says in task.error, how
        after = submit("demo.echo", {"message": "next"})
        eventually(lambda after=after: Task.objects.get(pk=after.pk).state == "succeeded")
        assert worker.is_alive(), how


def test_an_error_keeps_its_traceback(platform, eventually):
    platform.start_dispatcher()
    platform.start_worker("1,1")
    task = submit("testing.flaky", {"times": 2})
    eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")
    task.refresh_from_db()
    assert task.result == 3
    assert task.error is None
    attempts = Attempt.objects.filter(task_id=task.pk).order_by("id")
    assert [attempt.outcome for attempt in attempts] == ["failed", "failed", "succeeded"]
    assert "RuntimeError: attempt 1 fails" in attempts[0].error
    assert "in flaky" in attempts[0].traceback
