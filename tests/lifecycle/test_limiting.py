"""Limits: a full queue refuses what is new, whoever submits, and never what was accepted before."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from celery import current_app
from django.db import connections, transaction
from django.db.models.functions import Now

from capataz.errors import Conflict, InvalidSubmission, QueueFull
from capataz.lifecycle import retry
from capataz.lifecycle.limiting import limit
from capataz.lifecycle.recovery import recover
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Event, Outcome, Queue, Task
from capataz.models.queue import HIGHEST_LIMIT
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, tasks, together

pytestmark = pytest.mark.django_db


def count() -> int:
    return Task.objects.count()


def kinds() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


# Setting one.


def test_a_limit_is_set_changed_and_lifted_with_an_event_each(queue: Queue) -> None:
    for wanted in (5, 5, 7, None, None):
        assert limit(queue, wanted, by="ana").waiting_limit == wanted
    assert kinds() == ["queue.limited", "queue.limited", "queue.unlimited"]
    assert Event.objects.filter(kind="queue.limited").latest("id").detail == {
        "limit": 7,
        "before": 5,
        "by": "ana",
    }


@pytest.mark.parametrize("senseless", [0, -1, HIGHEST_LIMIT + 1])
def test_a_senseless_limit_is_refused(queue: Queue, senseless: int) -> None:
    with pytest.raises(InvalidSubmission, match=f"waitingLimit: must be 1 to {HIGHEST_LIMIT}"):
        limit(queue, senseless)
    assert Queue.objects.get().waiting_limit is None


# Refusing.


def test_a_full_queue_refuses_and_says_what_is_full(queue: Queue) -> None:
    limit(queue, 3)
    tasks(3)
    with pytest.raises(QueueFull) as refusal:
        submit("demo.echo")
    error = refusal.value
    assert (error.queue, error.limit, error.waiting, error.asked) == ("default", 3, 3, 1)
    assert error.retry_after > 0
    for said in ("default", "3 tasks wait of 3", f"{error.retry_after} seconds"):
        assert said in str(error)
    assert count() == 3


def test_what_fits_exactly_is_accepted(queue: Queue) -> None:
    limit(queue, 5)
    tasks(2)
    tasks(3)
    assert count() == 5


def test_what_does_not_fit_is_refused_whole_and_the_callers_transaction_goes_on(queue: Queue) -> None:
    Queue.objects.create(name="maintenance")
    limit(queue, 5)
    tasks(3)
    mixed = [Submission(type="demo.echo") for _ in range(3)] + [Submission(type="cleanup")]
    with transaction.atomic():
        with pytest.raises(QueueFull):
            submit_many(mixed)
        submit_many(mixed[1:])
    assert count() == 6


def test_only_the_limited_queue_refuses(queue: Queue) -> None:
    limit(queue, 1)
    tasks(1)
    submit("cleanup")
    with pytest.raises(QueueFull):
        submit("demo.echo")


@pytest.mark.parametrize("state", sorted(State))
def test_what_waits_counts_and_nothing_else(queue: Queue, worker: StagedWorker, state: State) -> None:
    [task] = tasks(1)
    held = state in (State.CLAIMED, State.RUNNING)
    final = state in (State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED)
    about: dict[str, Any] = {"finished_at": Now()} if final else {}
    if held:
        about = {"run": 1, "worker_id": worker.id, "released_at": Now()}
    Task.objects.filter(pk=task.pk).update(state=state, **about)
    limit(queue, 1)
    if state in (State.QUEUED, State.SCHEDULED, State.RETRYING):
        with pytest.raises(QueueFull):
            submit("demo.echo", delay=60)
    else:
        submit("demo.echo", delay=60)


def test_a_released_task_waits_until_it_is_claimed(queue: Queue, worker: StagedWorker) -> None:
    limit(queue, 1)
    [task] = tasks(1)
    Task.objects.update(released_at=Now(), verify_at=Now(), publishes=1)
    with pytest.raises(QueueFull):
        submit("demo.echo")
    worker.claim(task)
    submit("demo.echo")


def test_a_task_that_is_known_is_not_refused(queue: Queue) -> None:
    limit(queue, 2)
    own = "0198a000-0000-7000-8000-000000000001"
    first = [submit("demo.echo", key=key).pk for key in ("order 7", own)]
    assert [submit("demo.echo", key=key).pk for key in ("order 7", own)] == first
    with pytest.raises(Conflict):
        submit("demo.echo", {"message": "another"}, key="order 7")
    with pytest.raises(QueueFull):
        submit_many([Submission(type="demo.echo", key=key) for key in ("order 7", "order 8")])
    assert count() == 2


def test_a_task_named_twice_in_one_call_needs_room_once(queue: Queue) -> None:
    limit(queue, 1)
    one, other = submit_many([Submission(type="demo.echo", key="twice") for _ in range(2)])
    assert one == other


def test_celerys_doors_are_refused_too(queue: Queue) -> None:
    limit(queue, 1)
    task = current_app.tasks["demo.echo"]
    task.delay(message="fits")
    for call in (
        lambda: task.delay(message="x"),
        lambda: task.apply_async(kwargs={"message": "x"}),
        lambda: current_app.send_task("demo.echo", kwargs={"message": "x"}),
    ):
        with pytest.raises(QueueFull):
            call()
    assert count() == 1


# What was accepted comes back.


def test_a_lower_limit_refuses_no_task_that_is_there(
    queue: Queue, worker: StagedWorker, session: psycopg.Connection
) -> None:
    given_back, failed, orphan, dead = tasks(4)
    grants = worker.run(given_back, failed, orphan)
    Task.objects.filter(pk=dead.pk).update(state="dead", finished_at=Now())
    tasks(1)
    limit(queue, 1)
    worker.end(grants[:1], State.QUEUED, Outcome.GIVEN_BACK)
    worker.end(grants[1:2], State.RETRYING, Outcome.FAILED)
    retry.retry(dead)
    recover(session, worker.id)
    assert sorted(Task.objects.values_list("state", flat=True)) == ["queued"] * 4 + ["retrying"]


# Many at once.


def test_many_who_submit_at_once_never_exceed_the_limit(transactional_db: None, queue: Queue) -> None:
    limit(queue, 10)

    def ask() -> int:
        try:
            return len(submit_many([Submission(type="demo.echo") for _ in range(3)]))
        except QueueFull:
            return 0

    for _ in range(5):
        assert sum(together(*[ask] * 6)) == 9 == count()
        Task.objects.all().delete()


def test_whoever_submits_to_a_limited_queue_waits_for_an_open_transaction(
    transactional_db: None, queue: Queue, session: psycopg.Connection, eventually: Callable[..., Any]
) -> None:
    limit(queue, 1)
    refused: list[BaseException] = []

    def ask() -> None:
        try:
            submit("demo.echo")
        except BaseException as error:
            refused.append(error)
        finally:
            connections.close_all()

    other = threading.Thread(target=ask)
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with transaction.atomic():
        submit("demo.echo")
        other.start()
        eventually(lambda: session.execute(waits).fetchall() or not other.is_alive())
        assert other.is_alive()
    other.join()
    assert [type(error) for error in refused] == [QueueFull]
    assert count() == 1


def test_a_queue_without_a_limit_costs_one_statement_as_ever(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []

    class Counting(psycopg.Cursor):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            executed.append(query)
            return super().execute(query, *arguments, **options)

    limit(Queue.objects.create(name="maintenance"), 5)
    monkeypatch.setattr(psycopg, "Cursor", Counting)
    submit_many([Submission(type="demo.echo") for _ in range(3)])
    assert len(executed) == 1
    submit_many([Submission(type="cleanup")])
    assert len(executed) == 1 + 4
