"""Pausing: a queue that accepts tasks and starts none."""

from typing import Any

import pytest

from capataz.lifecycle.pausing import pause, resume
from capataz.models import Event, Queue
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, now, release, states, tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def queue(db: None) -> Queue:
    return Queue.objects.create(name="default")


def test_a_paused_queue_says_since_when_and_why(queue: Queue) -> None:
    paused = pause(queue, reason="the mail server is down", by="ana")
    assert paused.is_paused
    assert paused.pause_reason == "the mail server is down"
    [event] = Event.objects.all()
    assert (event.kind, event.subject) == ("queue.paused", "default")
    assert event.detail == {"because": "the mail server is down", "by": "ana"}


def test_a_paused_queue_accepts_tasks(queue: Queue) -> None:
    pause(queue)
    assert states(tasks(2)) == [State.QUEUED] * 2


def test_what_is_released_and_unclaimed_waits_again(queue: Queue, worker: StagedWorker) -> None:
    [here], [there] = tasks(1), tasks(1, queue="email")
    release(here, there)
    pause(queue)
    assert (now(here).released_at, now(here).publishes, now(there).released_at is None) == (None, 0, False)
    assert worker.claim(here) == []


def test_what_is_claimed_or_runs_goes_on(queue: Queue, worker: StagedWorker) -> None:
    claimed, running = tasks(2)
    worker.hold(claimed)
    grants = worker.run(running)
    pause(queue)
    assert states([claimed, running]) == [State.CLAIMED, State.RUNNING]
    worker.end(grants)
    assert now(running).state == State.SUCCEEDED


def test_a_pause_does_not_wait_for_a_row_that_is_being_claimed(transactional_db: None, locked: Any) -> None:
    queue = Queue.objects.get_or_create(name="default")[0]
    one, other = tasks(2)
    release(one, other)
    with locked(one):
        pause(queue)
    assert (now(one).released_at is None, now(other).released_at is None) == (False, True)


def test_pausing_twice_is_pausing_once(queue: Queue) -> None:
    first = pause(queue, reason="first").paused_at
    again = pause(queue, reason="second")
    assert (again.paused_at, again.pause_reason) == (first, "first")
    assert Event.objects.count() == 1


def test_a_resumed_queue_is_as_before(queue: Queue) -> None:
    pause(queue, reason="why")
    resumed = resume(queue, by="ana")
    assert (resumed.is_paused, resumed.pause_reason) == (False, "")
    assert [event.kind for event in Event.objects.order_by("id")] == ["queue.paused", "queue.resumed"]


def test_resuming_what_is_not_paused_changes_nothing(queue: Queue) -> None:
    assert not resume(queue).is_paused
    assert not Event.objects.exists()
