"""The examples of Celery's own page on its canvas, over handlers."""

import pytest
from celery import chain, chord, current_app, group

from capataz.lifecycle.submission import submit
from capataz.models import Task
from capataz.models import Workflow as Row
from tests import workload


@pytest.fixture
def running(platform):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    return platform


def add(**numbers):
    return current_app.tasks["testing.add"].s(**numbers)


def total():
    return current_app.tasks["testing.total"].s()


PATIENT = {"timeout": 200, "interval": 0.05}


def test_the_examples_of_celerys_canvas_work_over_handlers(running, eventually):
    # (2 + 2) + 4 + 8
    result = chain(add(x=2, y=2), add(y=4), add(y=8))()
    assert result.get(**PATIENT) == 16
    assert [result.parent.get(**PATIENT), result.parent.parent.get(**PATIENT)] == [8, 4]
    assert [child.id for child in result.parent.children] == [result.id]
    assert (add(x=2, y=2) | add(y=4) | add(y=8)).apply_async().get(**PATIENT) == 16
    # An immutable signature takes nothing from the one before.
    immutable = current_app.tasks["testing.add"].si(x=8, y=8)
    assert (add(x=2, y=2) | immutable)().get(**PATIENT) == 16

    many = group(add(x=i, y=i) for i in range(10))()
    assert many.get(**PATIENT) == [2 * i for i in range(10)]
    assert many.successful()
    assert many.completed_count() == 10

    summed = chord((add(x=i, y=i) for i in range(100)), total())()
    assert summed.get(**PATIENT) == 9900
    assert len(summed.parent.results) == 100
    assert chord([add(x=1, y=1)])(total()).get(**PATIENT) == 2

    # A chain with a group in it becomes a chord, and one may end with a group.
    both = chain(add(x=4, y=4), group(add(y=1), add(y=2)), total())()
    assert both.get(**PATIENT) == 9 + 10
    spread = (add(x=1, y=1) | group(add(y=1), chain(add(y=2), add(y=3)))).delay()
    assert spread.get(**PATIENT) == [3, 7]
    assert Row.objects.count() == 8
    eventually(lambda: all(row.state == "succeeded" for row in Row.objects.all()))


def test_the_examples_of_celerys_canvas_work_over_durable_functions(running):
    plus, times, total_of = workload.durable_add.s, workload.durable_product.s, workload.durable_sum.s
    chained = chain(plus(2, 2), plus(4))()
    assert (chained.get(**PATIENT), chained.parent.get(**PATIENT)) == (8, 4)
    assert (times(2, 3) | times(4) | workload.durable_add.si(1, 1) | times(5))().get(**PATIENT) == 10
    assert group(plus(n, n) for n in range(3))().get(**PATIENT) == [0, 2, 4]
    assert chord([plus(n, n) for n in range(4)])(total_of()).get(**PATIENT) == 12
    assert chain(plus(1, 1), group(times(2), times(y=3)), total_of())().get(**PATIENT) == 10
    assert chain(plus(1, 1), add(y=3))().get(**PATIENT) == 5  # with a handler


def test_what_follows_a_failure_does_not_run_and_says_so(running, eventually):
    nothing = current_app.tasks["testing.nasty"].s(kind="object")
    result = chain(nothing, add(x=1, y=1))()
    with pytest.raises(Exception, match="cannot be stored"):
        result.parent.get(**PATIENT)
    # Its own end, unless Celery sees the failure of the one before it first.
    with pytest.raises(Exception, match=r"cannot be stored|a task that it waits for has not succeeded"):
        result.get(**PATIENT)
    eventually(lambda: Task.objects.get(pk=result.id).state == "cancelled")


def test_a_running_task_adds_to_its_workflow(running, eventually):
    task = submit("testing.spread", {"count": 3})
    eventually(lambda: Row.objects.filter(finished_at__isnull=False).exists())
    assert sorted(Task.objects.exclude(pk=task.pk).values_list("result", flat=True)) == [1, 2, 3]
    assert Row.objects.get().total == 4
