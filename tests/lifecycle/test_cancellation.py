"""Cancellation: stopping a task for good."""

from collections.abc import Callable
from typing import Any

import pytest

from capataz.errors import IllegalMove
from capataz.lifecycle.cancellation import cancel
from capataz.models import Event, Outcome, Task
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, kinds, now, release, tasks, together

pytestmark = pytest.mark.django_db


def waiting(state: State) -> Task:
    [task] = tasks(1, delay=3600)
    if state == State.QUEUED:
        Task.objects.update(state=state, run_at=None)
    else:
        Task.objects.update(state=state)
    return now(task)


@pytest.mark.parametrize("state", [State.SCHEDULED, State.BLOCKED, State.QUEUED, State.RETRYING])
def test_a_task_that_no_worker_holds_is_cancelled_at_once(state: State) -> None:
    task = cancel(waiting(state))
    assert (task.state, task.run_at) == (State.CANCELLED, None)
    assert task.finished_at is not None


def test_a_cancellation_says_who_and_why() -> None:
    [task] = tasks(1)
    cancel(task, reason="not needed", by="ana")
    [event] = Event.objects.filter(task_id=task.pk)
    assert event.kind == "task.cancelled"
    assert event.detail == {"type": "demo.echo", "because": "not needed", "by": "ana"}


def test_a_released_task_is_cancelled_and_cannot_be_claimed(worker: StagedWorker) -> None:
    [task] = tasks(1)
    release(task)
    assert cancel(task).state == State.CANCELLED
    assert worker.claim(task) == []


@pytest.mark.parametrize("started", [True, False])
def test_a_held_task_is_asked_for_and_goes_on_until_its_worker_lets_go(
    worker: StagedWorker, started: bool
) -> None:
    [task] = tasks(1)
    grants = worker.run(task) if started else worker.hold(task)
    asked = cancel(task)
    assert (asked.state, asked.cancel_requested_at is None) == ("running" if started else "claimed", False)
    worker.end(grants, State.CANCELLED, Outcome.CANCELLED)
    assert now(task).state == State.CANCELLED


def test_asking_twice_is_asking_once(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.run(task)
    assert cancel(task).cancel_requested_at == cancel(task).cancel_requested_at
    assert kinds(task) == ["task.cancelRequested"]


def test_a_cancelled_task_is_returned_as_it_is() -> None:
    [task] = tasks(1)
    first = cancel(task).finished_at
    assert cancel(task).finished_at == first
    assert kinds(task) == ["task.cancelled"]


@pytest.mark.parametrize(
    ("state", "outcome"), [(State.SUCCEEDED, Outcome.SUCCEEDED), (State.DEAD, Outcome.FAILED)]
)
def test_what_has_ended_otherwise_cannot_be_cancelled(
    worker: StagedWorker, state: State, outcome: Outcome
) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), state, outcome)
    with pytest.raises(IllegalMove, match=f"it is {state}"):
        cancel(task)
    assert now(task).state == state


def test_a_stale_copy_of_a_task_is_cancelled_by_what_its_row_says(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task))
    assert task.state == State.QUEUED  # this copy knows nothing of it
    with pytest.raises(IllegalMove):
        cancel(task)


def test_a_task_that_is_claimed_at_the_same_moment_is_cancelled_or_asked_for(
    hire: Callable[..., StagedWorker],
) -> None:
    worker = hire()
    for task in tasks(20):
        release(task)
        granted, asked = together(lambda task=task: worker.claim(task), lambda task=task: cancel(now(task)))
        row: Any = now(task)
        assert (row.state == State.CANCELLED and not granted) or (row.state == State.CLAIMED and granted)
        assert row.state == State.CANCELLED or row.cancel_requested_at is not None
        assert asked.pk == task.pk
