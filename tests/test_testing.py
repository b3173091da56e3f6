"""The kit that others test with, and the page on it, whose examples are run."""

import re
import unittest
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from django.db import connection, transaction

from capataz import handlers, testing
from capataz.errors import CapatazError, InvalidSubmission
from capataz.handlers import RunningTask, handler
from capataz.lifecycle.pausing import pause
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Queue, Task
from capataz.policy import fixed
from tests import workload
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def only_known_handlers() -> Iterator[None]:
    """Types that a test declares end with it."""
    known = set(handlers._registry)
    yield
    for name in set(handlers._registry) - known:
        del handlers._registry[name]
        current_app.tasks.pop(name, None)


@pytest.mark.parametrize("block", BLOCKS[1:], ids=range(1, len(BLOCKS)))
def test_the_examples_of_the_page_are_true(block: str, request: pytest.FixtureRequest, db: None) -> None:
    names: dict[str, Any] = {"__name__": "examples"}
    exec(compile(BLOCKS[0], "docs/testing.md", "exec", dont_inherit=True), names)
    exec(compile(block, "docs/testing.md", "exec", dont_inherit=True), names)
    cases = [each for each in names.values() if isinstance(each, type) and each.__module__ == "examples"]
    cases = [each for each in cases if issubclass(each, unittest.TestCase)]
    tests = [each for name, each in names.items() if name.startswith("test_")]
    assert cases or tests
    for case in cases:
        result = unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())
        assert result.testsRun
        assert not result.errors + result.failures
    for test in tests:
        for mark in getattr(test, "pytestmark", []):
            request.node.add_marker(getattr(pytest.mark, mark.name)(*mark.args, **mark.kwargs))
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
        point = transaction.savepoint()
        test(**{name: request.getfixturevalue(name) for name in wanted})
        transaction.savepoint_rollback(point)


def test_a_drain_runs_by_priority_then_age_and_retries_last(capataz_tasks: Any) -> None:
    order: list[str] = []

    @handler("kit.step", retry=fixed(500, attempts=2))
    def step(task: RunningTask, payload: dict[str, Any]) -> str:
        order.append(f"{payload['name']}{task.attempt}")
        if payload.get("then"):
            submit("kit.step", {"name": payload["then"]}, priority=9)
        if payload.get("fail") and task.attempt == 1:
            raise ValueError("once")
        return "done"

    submit("kit.step", {"name": "a", "fail": True})
    submit("kit.step", {"name": "b", "then": "d"})
    submit("kit.step", {"name": "c"}, priority=10)
    submit("kit.step", {"name": "later"}, delay=10)
    assert [task.payload["name"] for task in capataz_tasks.drain()] == ["c", "a", "b", "d", "a"]
    assert order == ["c1", "a1", "b1", "d1", "a2"]
    assert sorted(Task.objects.values_list("state", flat=True)) == ["scheduled"] + ["succeeded"] * 4
    assert sorted(Attempt.objects.values_list("outcome", flat=True)) == ["failed"] + ["succeeded"] * 4


def test_a_drain_that_never_ends_is_stopped(capataz_tasks: Any) -> None:
    @handler("kit.endless")
    def endless(task: RunningTask, payload: dict[str, Any]) -> None:
        submit("kit.endless")

    submit("kit.endless")
    with pytest.raises(AssertionError, match="after 10 attempts there is still more to run"):
        capataz_tasks.drain(most=10)


def test_deadlines_pass_while_one_travels(capataz_tasks: Any) -> None:
    late = workload.durable_add.apply_async((1, 2), expires=50)
    capataz_tasks.travel(51)
    assert capataz_tasks.drain() == []
    assert Task.objects.get(pk=late.id).state == "expired"
    with pytest.raises(CapatazError, match="expired"):
        capataz_tasks.run(late.id)


def test_a_paused_queue_is_left_alone(capataz_tasks: Any) -> None:
    submit("demo.echo", {"message": "x"})
    pause(Queue.objects.get_or_create(name="default")[0], reason="a test")
    assert capataz_tasks.drain() == []


def test_what_cannot_be_stored_is_a_failure_as_in_a_worker(capataz_tasks: Any) -> None:
    task = submit("testing.nasty", {"kind": "nan"})
    assert "the result cannot be stored" in capataz_tasks.run(task).error


def test_progress_reaches_the_row(capataz_tasks: Any) -> None:
    @handler("kit.progress")
    def tell(task: RunningTask, payload: dict[str, Any]) -> int | None:
        task.progress(40, "nearly")
        return Task.objects.get(pk=task.id).progress

    assert capataz_tasks.run(submit("kit.progress")).result == 40


def test_a_handler_that_breaks_the_transaction_fails_alone(capataz_tasks: Any) -> None:
    @handler("kit.breaks", retry=fixed(0, attempts=1))
    def breaks(task: RunningTask, payload: dict[str, Any]) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    first, second = submit("kit.breaks"), submit("demo.echo", {"message": "x"})
    capataz_tasks.drain()
    assert Task.objects.get(pk=first.pk).state == "dead"
    assert Task.objects.get(pk=second.pk).state == "succeeded"


def test_tasks_outside_of_a_tests_transaction_run_too(transactional_db: None, capataz_tasks: Any) -> None:
    task = submit("demo.echo", {"message": "x"})
    assert [each.pk for each in capataz_tasks.drain()] == [task.pk]


@pytest.mark.capataz("inline", retries=False)
def test_a_marked_test_needs_no_fixture() -> None:
    assert workload.durable_add.delay(1, 2).get() == 3
    [task] = testing.assert_submitted("tests.workload.durable_add", {"args": [1, 2]})
    assert task.state == "succeeded"


@pytest.mark.capataz("inline")
def test_children_run_inline_too_and_durable_tasks_are_retried(capataz_tasks: Any) -> None:
    file = f"kit-{uuid.uuid4().hex}.log"
    assert workload.durable_flaky.delay(file).get() == 3
    assert workload.notes(file) == ["flaky"] * 3


def test_assertions_say_what_was_submitted_instead(capataz_tasks: Any) -> None:
    with pytest.raises(AssertionError, match=r"demo\.echo was submitted 0 times.*nothing was submitted"):
        capataz_tasks.assert_submitted("demo.echo")
    submit("demo.echo", {"message": "x"}, priority=7)
    capataz_tasks.assert_submitted("demo.echo", {"message": "x"}, times=1, priority=7)
    with pytest.raises(
        AssertionError, match=r"priority='high'.*submitted were: demo\.echo \{'message': 'x'\}"
    ):
        capataz_tasks.assert_submitted("demo.echo", {"message": "x"}, priority="high")
    with pytest.raises(AssertionError, match="1 times, not 2 times"):
        capataz_tasks.assert_submitted("demo.echo", times=2)
    with pytest.raises(AssertionError, match="not never"):
        capataz_tasks.assert_not_submitted()
    capataz_tasks.assert_not_submitted("demo.echo", {"message": "y"})


def test_a_handler_alone_is_given_a_payload_that_was_checked() -> None:
    with pytest.raises(InvalidSubmission):
        testing.run_handler("demo.compute", {"n": "many"})
    assert testing.run_handler("testing.async_sum", {"numbers": [1, 2]}).result == 3
