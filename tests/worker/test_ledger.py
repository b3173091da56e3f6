"""The ledger, with no pool behind it: what it claims, writes down, repeats, and takes back."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection

from capataz.database import Session
from capataz.lifecycle import execution
from capataz.lifecycle.cancellation import cancel
from capataz.models import Attempt, Task
from capataz.states import State
from capataz.worker import ledger
from capataz.worker.holding import Bundle, Ended, Ending, Held
from capataz.worker.ledger import BATCH_BYTES, Announcement, Callbacks, Ledger
from tests.lifecycle.stage import StagedWorker, now, release, tasks

Eventually = Callable[..., Any]


class Parent:
    """What the rest of the worker's parent would do: remember what the ledger tells it."""

    def __init__(self, *, start: bool = True) -> None:
        self.worker = StagedWorker()
        self.bundles: list[Bundle] = []
        self.settled: list[tuple[Ended, str]] = []  # with the state that others saw at that moment
        self.refused: list[Announcement] = []
        self.stopped: list[tuple[Held, Ending]] = []
        self.acknowledged: list[list[Any]] = []
        self._others = Session("others")
        callbacks = Callbacks(
            granted=self.bundles.append,
            settled=self._settle,
            shown_running=lambda helds: None,
            refused=self.refused.append,
            stop_run=lambda held, ending, why: self.stopped.append((held, ending)),
        )
        self.ledger = Ledger(self.worker.id, callbacks, lambda: [])
        if start:
            self.ledger.start()

    def announce(self, *announced: Task) -> None:
        ids = [task.pk for task in announced]
        self.ledger.announce(Announcement("demo.echo", ids, lambda: self.acknowledged.append(ids)))

    def held(self) -> list[Held]:
        return [held for bundle in self.bundles for held in bundle.items]

    def end(self, *helds: Held, **about: Any) -> None:
        for held in helds:
            held.started = time.monotonic() - 1
        about = {"result": "1", **about}
        self.ledger.end([Ended(held, Ending.SUCCEEDED, time.monotonic(), **about) for held in helds])

    def stop(self) -> None:
        if self.ledger.is_alive():
            self.ledger.stop(time.monotonic() + 5)
            self.ledger.join(timeout=30)
        self.ledger.session.close()
        self._others.close()
        self.worker.session.close()

    def _settle(self, ended: list[Ended], bundles: list[Bundle]) -> None:
        query = "SELECT state FROM capataz_task WHERE id = %s"
        for each in ended:
            [[state]] = self._others.connection().execute(query, [each.held.id]).fetchall()
            self.settled.append((each, state))
        for bundle in bundles:
            bundle.acknowledge()


@pytest.fixture
def parent(transactional_db: None) -> Iterator[Parent]:
    made = Parent()
    yield made
    made.stop()


@pytest.fixture
def idle(transactional_db: None) -> Iterator[Parent]:
    """With a ledger that makes a cycle when it is told to."""
    made = Parent(start=False)
    yield made
    made.stop()


def grant(parent: Parent, eventually: Eventually, count: int) -> list[Held]:
    """So many tasks, released, announced, and granted."""
    given = tasks(count)
    release(*given)
    parent.announce(*given)
    eventually(lambda: len(parent.held()) == count)
    return parent.held()


def test_whoever_is_told_of_an_end_finds_it_committed(parent: Parent, eventually: Eventually) -> None:
    helds = grant(parent, eventually, 20)
    assert not parent.settled
    parent.end(*helds)
    eventually(lambda: len(parent.settled) == 20)
    assert {state for _, state in parent.settled} == {"succeeded"}
    assert parent.ledger.held == {}


def test_a_message_is_acknowledged_after_the_commit_of_its_last_task(idle: Parent) -> None:
    given = tasks(2)
    release(*given)
    idle.announce(*given)
    idle.ledger._cycle()
    first, last = idle.held()
    assert idle.acknowledged == []
    idle.end(first)
    idle.ledger._cycle()
    assert idle.acknowledged == []
    idle.end(last)
    idle.ledger.session.connection().execute("SET lock_timeout = 1")
    with idle.worker.connection.transaction():
        idle.worker.connection.execute("LOCK TABLE capataz_attempt IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            idle.ledger._cycle()
    assert idle.acknowledged == []  # nothing was committed
    idle.ledger._cycle()
    assert idle.acknowledged == [[task.pk for task in given]]


def test_a_row_that_was_only_locked_is_claimed_a_moment_later(idle: Parent) -> None:
    free, busy = given = tasks(2)
    release(*given)
    idle.announce(*given)
    others = idle.worker.connection
    with others.transaction():
        others.execute("SELECT FROM capataz_task WHERE id = %s FOR UPDATE", [busy.pk])
        idle.ledger._cycle()
        assert [held.id for held in idle.held()] == [free.pk]
    idle.ledger._cycle()
    assert [held.id for held in idle.held()] == [free.pk, busy.pk]
    idle.end(*idle.held())
    idle.ledger._cycle()
    assert idle.acknowledged == [[task.pk for task in given]]  # once, for both


def test_one_comparison_settles_whatever_the_rows_say(idle: Parent) -> None:
    taken, unwanted, kept, stray = given = tasks(4)
    release(*given)
    idle.announce(taken, unwanted, kept)
    idle.ledger._cycle()
    lost = [(stray.pk, idle.worker.new_run() + 1000)]  # a claim whose answer never came
    execution.claim(idle.worker.connection, idle.worker.id, lost)
    recovered = {"state": State.QUEUED, "run": None, "worker_id": None, "released_at": None}
    Task.objects.filter(pk=taken.pk).update(**recovered)
    cancel(unwanted)
    idle.ledger._reconciled = 0.0
    idle.ledger._cycle()
    assert {(held.id, ending) for held, ending in idle.stopped} == {
        (taken.pk, Ending.GIVEN_BACK),
        (unwanted.pk, Ending.CANCELLED),
    }
    assert (now(stray).state, now(stray).worker_id) == ("queued", None)
    assert now(kept).state == "claimed"


def test_what_ends_together_is_one_commit(parent: Parent, eventually: Eventually) -> None:
    helds = grant(parent, eventually, 50)
    parent.end(*helds)
    eventually(lambda: len(parent.settled) == 50)
    assert transactions() == 1


def test_large_results_are_cut_into_commits_of_their_own(parent: Parent, eventually: Eventually) -> None:
    helds = grant(parent, eventually, 3)
    parent.end(*helds, result=json.dumps("x" * (BATCH_BYTES - 1000)))
    eventually(lambda: len(parent.settled) == 3)
    assert transactions() == 3
    assert Task.objects.filter(state="succeeded").count() == 3


def test_many_ends_are_cut_into_commits_of_their_own(idle: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BATCH_TASKS", 2)
    given = tasks(3)
    release(*given)
    idle.announce(*given)
    idle.ledger._cycle()
    idle.end(*idle.held())
    idle.ledger._cycle()
    assert len(idle.settled) == 2
    idle.ledger._cycle()
    assert len(idle.settled) == 3


def test_all_that_has_ended_is_written_before_the_last_give_back(
    idle: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "BATCH_TASKS", 2)
    given = tasks(5)
    release(*given)
    idle.announce(*given)
    idle.ledger._cycle()
    idle.end(*idle.held())
    idle.ledger.stop(time.monotonic() + 60)
    idle.ledger.run()
    assert {now(task).state for task in given} == {"succeeded"}


def test_a_ledger_without_a_database_ends_at_its_deadline(
    idle: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise psycopg.OperationalError("no route to it")

    monkeypatch.setattr(idle.ledger.session, "connection", refuse)
    idle.ledger.stop(time.monotonic())
    idle.ledger.start()
    idle.ledger.join(timeout=30)
    assert not idle.ledger.is_alive()


def transactions() -> int:
    """How many transactions the rows of all tasks come from."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM capataz_task")
        [number] = cursor.fetchone()
    return int(number)


def test_rows_of_ours_that_we_do_not_hold_are_given_back(parent: Parent, eventually: Eventually) -> None:
    """As after a claim whose answer was lost with its connection."""
    [stray] = tasks(1)
    parent.worker.hold(stray)
    assert now(stray).state == "claimed"
    eventually(lambda: now(stray).state == "queued")
    assert now(stray).worker_id is None
    assert now(stray).given_back == 0  # no fault of the task's


def test_what_we_hold_and_no_longer_own_is_stopped(parent: Parent, eventually: Eventually) -> None:
    [held] = grant(parent, eventually, 1)
    taken = {"state": State.QUEUED, "run": None, "worker_id": None, "released_at": None, "verify_at": None}
    Task.objects.filter(pk=held.id).update(publishes=0, **taken)
    eventually(lambda: (held, Ending.GIVEN_BACK) in parent.stopped)
    parent.end(held)
    eventually(lambda: len(parent.settled) == 1)
    assert Task.objects.get(pk=held.id).state == "queued"
    assert not Attempt.objects.exists()


def test_an_end_under_a_run_that_is_over_changes_nothing(parent: Parent, eventually: Eventually) -> None:
    [held] = grant(parent, eventually, 1)
    Task.objects.filter(pk=held.id).update(run=held.run + 1000)  # somebody else has it now
    parent.end(held)
    eventually(lambda: len(parent.settled) == 1)
    task = Task.objects.get(pk=held.id)
    assert (task.run, task.result) == (held.run + 1000, None)
    assert not Attempt.objects.exists()


def test_a_claim_is_repeated_under_the_same_run_when_its_session_dies(
    parent: Parent, eventually: Eventually
) -> None:
    grant(parent, eventually, 1)
    assert parent.ledger.session.backend
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [parent.ledger.session.backend[0]])
    given = tasks(3)
    release(*given)
    parent.announce(*given)
    eventually(lambda: len(parent.held()) == 4)
    time.sleep(1.5)  # more than one comparison with the rows: nothing is stopped, nothing given back
    assert parent.stopped == []
    assert {now(task).run for task in given} <= parent.ledger.held.keys()


def test_a_lock_on_the_table_delays_an_end_and_loses_nothing(parent: Parent, eventually: Eventually) -> None:
    [held] = grant(parent, eventually, 1)
    other = Session("somebody else")
    try:
        with other.connection().transaction():
            other.connection().execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            other.connection().execute("LOCK TABLE capataz_task IN ACCESS EXCLUSIVE MODE")
            parent.end(held)
            time.sleep(7)  # longer than the ledger waits for a lock
            assert not parent.settled
    finally:
        other.close()
    eventually(lambda: len(parent.settled) == 1)
    assert Task.objects.get(pk=held.id).state == "succeeded"


def test_what_cannot_be_claimed_is_refused(parent: Parent, eventually: Eventually) -> None:
    unreleased, ended = tasks(2)
    parent.worker.end(parent.worker.run(ended))
    parent.announce(unreleased)
    parent.announce(ended)
    eventually(lambda: len(parent.refused) == 2)
    assert parent.bundles == []
    assert now(unreleased).state == "queued"


def test_a_message_of_an_unknown_type_is_passed_on_with_what_it_names_of_such_types(
    parent: Parent, eventually: Eventually
) -> None:
    unknown, known = tasks(2)
    release(unknown, known)
    Task.objects.filter(pk=unknown.pk).update(type="no.such.type")
    passed: list[str] = []
    ids = [unknown.pk, known.pk]
    parent.ledger.pass_on(Announcement("no.such.type", ids, lambda: passed.append("acknowledged")))
    eventually(lambda: passed)
    assert [now(task).released_at is None for task in (unknown, known)] == [True, False]


def test_who_drains_claims_nothing_and_lets_go_of_the_messages(
    parent: Parent, eventually: Eventually
) -> None:
    parent.ledger.draining = True
    given = tasks(2)
    release(*given)
    parent.announce(*given)
    eventually(lambda: parent.acknowledged == [[task.pk for task in given]])
    assert parent.bundles == []


def test_what_is_left_at_the_end_is_given_back(parent: Parent, eventually: Eventually) -> None:
    helds = grant(parent, eventually, 3)
    parent.end(helds[0])
    parent.ledger.stop(time.monotonic() + 5)
    parent.ledger.join(timeout=30)
    assert Task.objects.get(pk=helds[0].id).state == "succeeded"
    left = Task.objects.filter(pk__in=[held.id for held in helds[1:]])
    assert {(task.state, task.worker_id, task.given_back) for task in left} == {("queued", None, 1)}
