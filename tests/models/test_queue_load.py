"""The load of a queue: what waits, what runs, and since when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Queue, Task, Worker, queue_load
from capataz.models.queue_load import QueueLoad, queue_loads

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def queue() -> Queue:
    return Queue.objects.create(name="default")


def load() -> QueueLoad:
    [only] = queue_loads()
    return only


def aged(seconds: float, **changes: object) -> Task:
    task = submit("demo.echo")
    Task.objects.filter(pk=task.pk).update(created_at=Now() - timedelta(seconds=seconds), **changes)
    return task


def test_an_empty_queue_has_no_oldest() -> None:
    assert (load().waiting, load().claimed, load().running, load().oldest_age) == (0, 0, 0, None)


def test_released_and_unreleased_tasks_wait_alike() -> None:
    aged(100)
    aged(200, released_at=Now())
    aged(50, priority=9)
    assert load().waiting == 3
    assert load().oldest_age == pytest.approx(200, abs=30)


def test_the_oldest_may_have_any_priority() -> None:
    aged(100, priority=0)
    aged(50, priority=10)
    assert load().oldest_age == pytest.approx(100, abs=30)


def test_held_tasks_do_not_wait() -> None:
    worker = Worker.objects.create(name="w", host="h", pid=1)
    for state in ("claimed", "running", "running"):
        aged(10, state=state, run=1, worker_id=worker.pk, released_at=Now())
    assert (load().waiting, load().claimed, load().running, load().oldest_age) == (0, 1, 2, None)


def test_counting_stops_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_load, "CAP", 5)
    submit_many([Submission(type="demo.echo") for _ in range(4)])
    assert (load().waiting, load().waiting_is_exact) == (4, True)
    submit_many([Submission(type="demo.echo") for _ in range(4)])
    assert (load().waiting, load().waiting_is_exact) == (5, False)
