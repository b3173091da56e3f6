"""Waiting for results: what comes back, what is raised, and when nobody waits any longer."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

from capataz.errors import InvalidSubmission, TaskError
from capataz.lifecycle.submission import Submission, submit
from capataz.lifecycle.system_metrics import aget_system_metrics, get_system_metrics
from capataz.lifecycle.waiting import (
    agather,
    agather_settled,
    aprocess_task,
    await_result,
    gather,
    gather_settled,
    process_task,
    wait,
)
from capataz.models import Task
from tests.lifecycle.stage import tasks
from tests.processes import Processes

PATIENCE = 60


def echo(message: Any) -> dict[str, Any]:
    return {"type": "demo.echo", "data": {"message": message}}


def fails(times: int = 9) -> Task:
    return submit("testing.flaky", {"times": times}, max_attempts=1)


def test_who_waits_gets_the_result_or_the_error(platform: Processes) -> None:
    platform.start_dispatcher()
    platform.start_worker("2,2")

    assert process_task(echo("hola"), 8, timeout=PATIENCE) == "hola"
    assert Task.objects.get().priority == 8
    asked = Submission(type="testing.async_sum", data={"numbers": [1, 2]})
    assert process_task(asked, timeout=PATIENCE) == 3
    with pytest.raises(TaskError, match="attempt 1 fails") as failed:
        process_task({"type": "testing.flaky", "data": {"times": 9}, "attempts": 1}, timeout=PATIENCE)
    assert failed.value.state == "dead"

    first, second = submit("testing.flaky", {"times": 0}), submit("testing.flaky", {"times": 1}, key="second")
    assert gather(first, "second", first.pk, timeout=PATIENCE) == [1, 2, 1]
    assert wait(str(second.pk), timeout=PATIENCE) == 2
    settled = gather_settled(first, bad := fails(), second, timeout=PATIENCE)
    assert settled["successful"] == [1, 2]
    assert [(error.task_id, error.state) for error in settled["failed"]] == [(str(bad.pk), "dead")]
    with pytest.raises(TaskError):
        gather(first, fails(), timeout=PATIENCE)

    async def coroutine() -> None:
        assert (await aprocess_task(echo(1), "alta", timeout=PATIENCE)) == 1
        assert await agather(first.pk, "second", timeout=PATIENCE) == [1, 2]
        assert await await_result(first, timeout=PATIENCE) == 1
        [error] = (await agather_settled(bad, timeout=PATIENCE))["failed"]
        assert "attempt 1 fails" in str(error)

    in_a_coroutine(coroutine)

    metrics = get_system_metrics()
    assert in_a_coroutine(aget_system_metrics).keys() == metrics.keys()
    assert metrics["concurrency"]["totalProcessed"] == Task.objects.count()
    assert metrics["concurrency"]["totalFailed"] == metrics["persistence"]["failedTasks"] == 3
    assert metrics["persistence"] == {
        "pendingTasks": 0,
        "completedTasks": Task.objects.count() - 3,
        "failedTasks": 3,
    }
    assert metrics["circuitBreaker"]["lastFailureTime"].endswith("Z")


def form(of: Any) -> Any:
    """The names in this document, with nothing under the last of them."""
    return {name: form(each) for name, each in of.items()} if isinstance(of, dict) else 0


def in_a_coroutine(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The result of this coroutine; the thread in which it asked the database keeps no session."""

    async def whole() -> Any:
        try:
            return await work()
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(whole())


def test_the_metrics_have_their_exact_form(transactional_db: None) -> None:
    tasks(3)
    metrics = get_system_metrics()
    assert form(metrics) == {
        "concurrency": dict.fromkeys(
            ["activeJobs", "queueSize", "totalProcessed", "totalFailed", "averageProcessingTime"], 0
        ),
        "circuitBreaker": dict.fromkeys(["state", "failureCount", "successCount", "lastFailureTime"], 0),
        "persistence": dict.fromkeys(["pendingTasks", "completedTasks", "failedTasks"], 0),
        "system": {
            "uptime": 0,
            "memoryUsage": {"rss": 0, "heapUsed": 0},
            "cpuUsage": {"user": 0, "system": 0},
        },
    }
    assert metrics["concurrency"]["queueSize"] == metrics["persistence"]["pendingTasks"] == 3


def test_nobody_waits_longer_than_they_said(transactional_db: None) -> None:
    [task] = tasks(1)
    with pytest.raises(TimeoutError, match="1 tasks"):
        wait(task, timeout=0.05)
    with pytest.raises(TimeoutError):
        in_a_coroutine(lambda: await_result(task, timeout=0.05))
    task.refresh_from_db()
    assert task.state == "queued"


def test_what_is_not_there_is_an_error_and_no_endless_wait(transactional_db: None) -> None:
    for name in ("nobody", str(uuid.uuid4())):
        with pytest.raises(TaskError, match="no such task"):
            wait(name, timeout=PATIENCE)


def test_nobody_waits_inside_a_transaction(transactional_db: None) -> None:
    with transaction.atomic():
        [task] = tasks(1)
        with pytest.raises(RuntimeError, match="after the transaction"):
            wait(task)
        with pytest.raises(RuntimeError, match="after the transaction"):
            process_task(echo(1))
    assert Task.objects.count() == 1


@pytest.mark.parametrize(
    ("task", "pointer"),
    [
        ({"data": {}}, "type"),
        ({**echo(1), "colour": 1}, "colour"),
        ({**echo(1), "attempts": 0}, "maxAttempts"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(transactional_db: None, task: Any, pointer: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        process_task(task)
    assert [fault.pointer for fault in refused.value.faults] == [pointer]
