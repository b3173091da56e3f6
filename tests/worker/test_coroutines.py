"""Coroutine functions as handlers, in real workers."""

import uuid
from typing import Any

import pytest

from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests.workload import notes


@pytest.fixture
def working(platform: Any) -> Any:
    platform.start_dispatcher()
    platform.start_worker("1,1")
    return platform


def coroutine(how: str, **options: Any) -> Task:
    file = f"coroutine-{uuid.uuid4().hex}.log"
    return submit("testing.coroutine", {"how": how, "file": file}, **options)


def test_coroutines_keep_the_promises_of_handlers(working: Any, eventually: Any) -> None:
    late = coroutine("wait")
    others = {how: coroutine(how) for how in ("orm", "context", "raise", "leave", "return")}
    tasks = [late, *others.values(), again := coroutine("context")]
    ended = Task.objects.filter(pk__in=[task.pk for task in tasks], finished_at__isnull=False)
    eventually(lambda: ended.count() == len(tasks))
    rows = Task.objects.in_bulk([task.pk for task in tasks])

    assert rows[late.pk].error == "soft time limit exceeded", "it ends a coroutine that waits"
    assert rows[others["orm"].pk].result == ["testing.coroutine", 1]
    assert rows[others["raise"].pk].error == "Flaky: in a coroutine"
    for each in (others["context"], again):
        assert rows[each.pk].result == ["untouched", "touched", str(each.pk)], "no context outlives its task"
    assert all(notes(task.payload["file"]) == ["cleaned up"] for task in tasks)


def test_a_cancel_reaches_a_coroutine_where_it_waits(working: Any, eventually: Any) -> None:
    task = coroutine("wait", soft_time_limit=600, time_limit=900)
    eventually(lambda: Task.objects.get(pk=task.pk).state == "running")
    cancel(Task.objects.get(pk=task.pk))
    eventually(lambda: Task.objects.get(pk=task.pk).state == "cancelled")
    assert notes(task.payload["file"]) == ["cleaned up"]
    after = coroutine("return")
    eventually(lambda: Task.objects.get(pk=after.pk).state == "succeeded")
    assert Task.objects.get(pk=after.pk).result == 1, "nothing is left of the task before"
