"""Retry: a person asks for a task that ended without success to be run again."""

import pytest
from django.db.models.functions import Now

from capataz.errors import IllegalMove
from capataz.lifecycle.retry import RETRYABLE, retry
from capataz.models import Attempt, Event, Outcome, Task
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, now, tasks, together

pytestmark = pytest.mark.django_db


def ended(state: State) -> Task:
    [task] = tasks(1)
    Task.objects.update(
        state=state,
        finished_at=Now(),
        expires_at=Now(),
        cancel_requested_at=Now(),
        attempts=3,
        losses=2,
        worker_losses=1,
        orphaned=2,
        given_back=4,
        error="boom",
        progress=70,
        progress_message="nearly",
    )
    return now(task)


@pytest.mark.parametrize("state", sorted(RETRYABLE))
def test_a_task_that_ended_without_success_waits_again(state: State) -> None:
    task = retry(ended(state))
    assert (task.state, task.finished_at, task.released_at) == (State.QUEUED, None, None)


def test_a_retried_task_has_all_its_attempts_ahead_of_it() -> None:
    task = retry(ended(State.DEAD))
    assert (task.attempts, task.losses, task.worker_losses, task.orphaned, task.given_back) == (0,) * 5


def test_nothing_of_its_first_life_stops_a_retried_task() -> None:
    task = retry(ended(State.EXPIRED))
    assert (task.expires_at, task.cancel_requested_at) == (None, None)
    assert (task.error, task.progress, task.progress_message) == (None, None, None)


def test_its_history_stays(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.DEAD, Outcome.FAILED, error="boom")
    retry(task)
    assert [attempt.error for attempt in Attempt.objects.filter(task_id=task.pk)] == ["boom"]


def test_a_retry_says_who_asked_for_it() -> None:
    task = retry(ended(State.DEAD), by="ana")
    [event] = Event.objects.filter(task_id=task.pk)
    assert (event.kind, event.detail["by"]) == ("task.retried", "ana")


@pytest.mark.parametrize(
    "state", [State.QUEUED, State.SCHEDULED, State.RETRYING, State.BLOCKED, State.SUCCEEDED]
)
def test_no_other_task_can_be_retried(state: State) -> None:
    [task] = tasks(1)
    Task.objects.update(state=state, finished_at=Now() if state == State.SUCCEEDED else None)
    with pytest.raises(IllegalMove, match=f"it is {state}"):
        retry(task)
    assert not Event.objects.exists()


def test_a_held_task_cannot_be_retried(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.run(task)
    with pytest.raises(IllegalMove, match="it is running"):
        retry(task)


def test_a_retried_task_can_run_and_succeed(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.DEAD, Outcome.FAILED, error="boom")
    retry(task)
    worker.end(worker.run(task))
    assert (now(task).state, now(task).error, now(task).attempts) == (State.SUCCEEDED, None, 1)


def test_of_two_people_who_retry_at_once_one_is_told_that_it_is_done(transactional_db: None) -> None:
    task = ended(State.DEAD)

    def ask() -> str:
        try:
            return str(retry(now(task)).state)
        except IllegalMove:
            return "told"

    assert sorted(together(ask, ask)) == [State.QUEUED, "told"]
    assert Event.objects.filter(kind="task.retried").count() == 1
