"""What two or three do to one task at the same moment, in every order of their statements.

Each is stopped before every statement and every commit, on real PostgreSQL, and every order is tried, those
in which one has to wait for another's lock included. Afterwards the row has to be in order, what was promised
has to be kept, and the task can still be brought to an end.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db.models.functions import Now
from django_celery_results.models import TaskResult

from capataz import database
from capataz.database import Session
from capataz.errors import IllegalMove
from capataz.flow import Flow, Limit
from capataz.lifecycle import dispatch, execution, recovery, retention
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.crew import present
from capataz.lifecycle.dispatch import Dispatcher
from capataz.lifecycle.execution import Finish
from capataz.lifecycle.pausing import pause
from capataz.lifecycle.retry import retry
from capataz.models import Attempt, Outcome, Queue, Task, Worker
from capataz.sql import statement
from capataz.states import FINAL, HELD, State
from capataz.worker.holding import Ended, Ending, Held
from capataz.worker.ledger import Announcement, Callbacks, Ledger
from tests.lifecycle.orders import Act, Actor, every_order, hurry
from tests.lifecycle.stage import StagedWorker, release, tasks

ENDINGS = {
    "success": Ending.SUCCEEDED,
    "failure": Ending.FAILED,
    "loss": Ending.LOST,
    "give back": Ending.GIVEN_BACK,
    "snooze": Ending.SNOOZED,
}
# Who may wait for a row: nobody else ever does.
PEOPLE = {"cancel", "retry", "pause"}

# Who takes a task from a worker that does not know of it yet.
TAKERS = {"burial", "burial and its kill", "recovery"}
# Where three act, they are stopped before what changes the task and before commits alone.
SECONDARY = ("-- record_results", "-- still_held", "-- still_grantable", "SELECT")


class Stage:
    """One task, two workers with their ledgers, and whoever else wants something of it."""

    def __init__(self) -> None:
        self.workers = [StagedWorker(), StagedWorker()]
        self.ledgers = [_ledger(worker.id) for worker in self.workers]
        self.actors = [Actor(), Actor(), Actor()]
        self.sessions = [Session("actor") for _ in self.actors]
        self.dispatchers = [Dispatcher(), Dispatcher(), Dispatcher()]
        self.monitor = Session("monitor", durable=False)
        hurry(database.driver())
        self.queue = Queue.objects.get_or_create(name="default")[0]
        self.task: Task
        self.acts: list[str] = []
        self.helds: list[Held] = []
        self.is_cancelled = self.is_retried = self.is_cut = False

    def close(self) -> None:
        for actor in self.actors:
            actor.leave()
        owners: list[Any] = [*self.workers, *self.ledgers]
        for session in [self.monitor, *self.sessions, *(owner.session for owner in owners)]:
            session.close()
        for dispatcher in self.dispatchers:
            dispatcher._session.close()

    @property
    def own(self) -> Any:
        return self.monitor.connection()

    def row(self) -> Task | None:
        return Task.objects.filter(pk=self.task.pk).first()

    def set(self, beginning: str) -> None:
        """A new task that has come so far; the first worker holds it if anybody does."""
        Worker.objects.update(state="running", stopped_at=None)
        Queue.objects.update(paused_at=None)
        self.is_cancelled = self.is_retried = self.is_cut = False
        for ledger in self.ledgers:
            ledger.session.connection()
            ledger.held.clear()
            ledger._announced.clear()
            ledger._ended.clear()
            ledger._reconciled = time.monotonic() + 3600  # it compares when it is told to
        [self.task] = tasks(1, max_attempts=2)
        row = Task.objects.filter(pk=self.task.pk)
        match beginning:
            case "released" | "claimed" | "running":
                release(self.task)
            case "dead":
                row.update(state=State.DEAD, finished_at=Now(), error="it failed")
            case "in a lane":
                row.update(lane="demo.echo||")
            case "late":
                row.update(expires_at=Now())
        if beginning in ("claimed", "running"):
            self._announce(self.ledgers[0])
            self.ledgers[0]._cycle()
        self.helds = list(self.ledgers[0].held.values())
        if beginning == "running":
            execution.mark_running(self.own, [(held.id, held.run, 1.0) for held in self.helds])

    def act(self, name: str, place: int) -> Act:
        """What the actor at this place is to do, on connections on which it is stopped."""
        actor, session = self.actors[place], self.sessions[place]
        match name:
            case "claim" | "another's claim":
                ledger = self.ledgers[name != "claim"]
                self._announce(ledger)
                return self._with_ledger(actor, ledger, ledger._cycle)
            case "success" | "failure" | "loss" | "give back" | "snooze":
                self._end(ENDINGS[name])
                return self._with_ledger(actor, self.ledgers[0], self.ledgers[0]._cycle)
            case "comparison":
                return self._with_ledger(actor, self.ledgers[0], self.ledgers[0]._reconcile)
            case "release":
                dispatcher = self.dispatchers[place]
                dispatcher._crew = present(dispatcher._session.connection())
                actor.pace(dispatcher._session.connection())
                return lambda: dispatcher._release(dispatcher._session.connection(), self.queue.name)
            case "lane release":
                dispatcher = self.dispatchers[place]
                dispatcher._crew = present(dispatcher._session.connection())
                dispatcher._lanes.flows = {"demo.echo": Flow(limits=(Limit(concurrency=1, rate="1/s"),))}
                actor.pace(dispatcher._session.connection())
                return lambda: dispatcher._release(
                    dispatcher._session.connection(), self.queue.name, laned=True
                )
            case "park":
                dispatcher = self.dispatchers[place]
                dispatcher._lanes.flows = {"demo.echo": Flow(limits=(Limit(concurrency=1),))}
                actor.pace(dispatcher._session.connection())
                return lambda: dispatcher._lanes.park(
                    dispatcher._session.connection(), self.queue.name, ["demo.echo"], now=True
                )
            case "cancel" | "retry" | "pause" | "prune":
                return lambda: self._as_person(actor, getattr(self, f"_{name}"))
        actor.pace(own := session.connection())
        return {
            "burial": lambda: self._bury(own, []),
            "burial and its kill": lambda: self._bury_and_kill(own),
            "recovery": lambda: recovery.recover(own, self.workers[0].id),
            "expiry": lambda: dispatch.expire(own),
            "verification": lambda: own.execute(statement("verify"), self._unclaimed()),
            "withdrawal": lambda: own.execute(
                statement("withdraw_queues_of"), {"worker": self.workers[1].id}
            ),
        }[name]

    def _with_ledger(self, actor: Actor, ledger: Ledger, act: Act) -> Act:
        actor.pace(ledger.session.connection())

        def work() -> None:
            try:
                act()
            except psycopg.OperationalError as error:
                if error.sqlstate is not None and error.sqlstate != "57P01":  # only its session was ended
                    raise
                ledger.session.close()

        return work

    def _announce(self, ledger: Ledger) -> None:
        ledger.announce(Announcement("demo.echo", [self.task.pk], lambda: None))

    def _end(self, ending: Ending) -> None:
        [held] = self.helds
        held.started, held.ended = time.monotonic() - 1, True
        self.ledgers[0].end([Ended(held, ending, time.monotonic(), result="1")])

    def _bury(self, own: Any, backends: list[Any]) -> None:
        heartbeat = self.workers[0].row().heartbeat_at
        recovery.bury(own, self.workers[0].id, heartbeat, backends, "it was silent")
        recovery.recover(own, self.workers[0].id)

    def _bury_and_kill(self, own: Any) -> None:
        self.is_cut = True
        self._bury(own, [self.ledgers[0].session.backend])

    def _unclaimed(self) -> dict[str, Any]:
        here = {"queues": [self.queue.name], "types": ["demo.echo"], "empty": [], "all": True, "most": 10}
        return {**here, "first": 3, "longest": 60, "patience": 60, "aged": 300.0}

    def _as_person(self, actor: Actor, act: Act) -> None:
        actor.pace(database.driver())
        act()

    def _cancel(self) -> None:
        with suppress(IllegalMove):
            cancel(self.task)
            self.is_cancelled = True

    def _retry(self) -> None:
        with suppress(IllegalMove, Task.DoesNotExist):
            retry(self.task)
            self.is_retried = True

    def _pause(self) -> None:
        pause(self.queue)

    def _prune(self) -> None:
        retention._prune_state(State.DEAD, timedelta(0), 10, lambda: False)

    # What has to be true afterwards.

    def check(self) -> None:
        waited = {name for name, actor in zip(self.acts, self.actors, strict=False) if actor.has_waited}
        assert waited <= PEOPLE
        holding = [ledger for ledger in self.ledgers if ledger.held]
        assert len(holding) < 2 or TAKERS & set(self.acts)
        if self.is_cut:
            self.ledgers[0].session.close()
        self._check_row()
        self._check_promises()
        self._bring_to_its_end()
        self._check_row()

    def _check_row(self) -> None:
        row = self.row()
        if row is None:
            assert not self.is_retried
            return
        attempts = list(Attempt.objects.filter(task_id=row.pk).values_list("run", "outcome"))
        outcomes = Counter(outcome for _, outcome in attempts)
        assert outcomes["succeeded"] == (row.state == State.SUCCEEDED)
        assert len({run for run, _ in attempts}) == len(attempts)  # a run ends once
        assert (row.state in HELD) == (row.run is not None) == (row.worker_id is not None)
        assert (row.state in FINAL) == (row.finished_at is not None)
        assert row.attempts == outcomes["succeeded"] + outcomes["failed"]
        assert row.losses + row.worker_losses == outcomes["lost"]
        assert TaskResult.objects.filter(task_id=str(row.pk)).exists() == (
            row.state in FINAL and not (row.state == State.DEAD and not attempts)  # set dead by this test
        )

    def _check_promises(self) -> None:
        row = self.row()
        if row is None:
            return
        if self.is_cancelled and not self.is_retried:
            stops = row.state in HELD and row.cancel_requested_at is not None
            assert stops or row.state in (State.CANCELLED, State.SUCCEEDED)
        if Worker.objects.get(pk=self.workers[0].id).state == "lost":
            recovery.recover(self.own, self.workers[0].id)
            assert Task.objects.get(pk=row.pk).worker_id != self.workers[0].id
        if Queue.objects.get(pk=self.queue.pk).paused_at is not None and row.state == State.QUEUED:
            assert row.released_at is None

    def _bring_to_its_end(self) -> None:
        """Each ledger compares what it holds with the rows, and does what was put off for a lock."""
        for ledger in self.ledgers:
            ledger._reconcile()
            while ledger._announced or ledger._ended:
                ledger._cycle()
        for _ in range(3):
            row = self.row()
            if row is None or row.state in FINAL:
                return
            if row.state in HELD:
                assert row.run in self.ledgers[0].held.keys() | self.ledgers[1].held.keys()
                end = Finish(row.pk, row.run or 0, State.SUCCEEDED, Outcome.SUCCEEDED, started_ago=1.0)
                with self.own.transaction():
                    execution.finish(self.own, [end])
                continue
            Task.objects.filter(pk=row.pk).update(state=State.QUEUED, run_at=Now(), expires_at=None)
            release(row)
            self._announce(self.ledgers[1])
            self.ledgers[1]._cycle()
        raise AssertionError("the task cannot be brought to an end")


def _ledger(worker_id: int) -> Ledger:
    def end(held: Held, ending: Ending, why: str) -> None:
        if not held.ended:  # as the watch does, which ends a run once
            held.ended = True
            ledger.end([Ended(held, ending, time.monotonic(), error=why)])

    def nothing(*_: Any) -> None: ...

    ledger = Ledger(worker_id, Callbacks(nothing, nothing, nothing, nothing, end), lambda: [])
    return ledger


@pytest.fixture
def stage(transactional_db: None) -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


SCENES = [
    ("released", ["claim", "another's claim"]),
    ("released", ["claim", "cancel"]),
    ("released", ["claim", "burial"]),
    ("released", ["claim", "verification"]),
    ("released", ["claim", "withdrawal"]),
    ("released", ["claim", "pause"]),
    ("released", ["cancel", "verification"]),
    ("released", ["cancel", "cancel"]),
    ("claimed", ["success", "another's claim"]),
    ("claimed", ["give back", "cancel"]),
    ("claimed", ["give back", "recovery"]),
    ("claimed", ["recovery", "cancel"]),
    ("running", ["success", "cancel"]),
    ("running", ["failure", "cancel"]),
    ("running", ["loss", "cancel"]),
    ("running", ["snooze", "cancel"]),
    ("running", ["success", "burial and its kill"]),
    ("running", ["failure", "burial"]),
    ("running", ["recovery", "recovery"]),
    ("running", ["recovery", "cancel"]),
    ("running", ["comparison", "burial"]),
    ("queued", ["release", "release"]),
    ("queued", ["release", "cancel"]),
    ("queued", ["release", "pause"]),
    ("in a lane", ["lane release", "lane release"]),
    ("in a lane", ["lane release", "cancel"]),
    ("in a lane", ["lane release", "pause"]),
    ("queued", ["park", "release"]),
    ("queued", ["park", "park"]),
    ("queued", ["park", "cancel"]),
    ("late", ["expiry", "cancel"]),
    ("late", ["expiry", "expiry"]),
    ("dead", ["retry", "retry"]),
    ("dead", ["retry", "another's claim"]),
    ("dead", ["retry", "prune"]),
    ("running", ["success", "recovery", "another's claim"]),
    ("running", ["success", "recovery", "cancel"]),
]


def test_no_order_of_what_happens_at_once_breaks_a_task(stage: Stage) -> None:
    total = 0
    for beginning, acts in SCENES:
        count = _try(stage, beginning, acts)
        assert count > 1, acts
        print(f"{count:4} orders of {', '.join(acts)}")
        total += count
    print(f"{total:4} orders")


def _try(stage: Stage, beginning: str, acts: list[str]) -> int:
    stage.acts = acts
    for actor in stage.actors:
        actor.passes = SECONDARY if len(acts) > 2 else ()

    def scene() -> list[Act]:
        stage.set(beginning)
        return [stage.act(name, place) for place, name in enumerate(acts)]

    try:
        return every_order(stage.actors[: len(acts)], scene, stage.check, stage.own)
    except Exception as error:
        error.add_note(f"{beginning}: {', '.join(acts)}")
        raise
