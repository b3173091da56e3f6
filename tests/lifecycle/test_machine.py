"""Every order of submit, release, claim, end, death, cancel, retry, expiry and prune that hypothesis finds.

Several workers act on real rows. After each step the rows have to be in order, and at the end every task can
still be brought to an end: nothing is ever stuck, finished twice, or gone.
"""

from collections import Counter
from datetime import timedelta
from typing import Any

import hypothesis
from django.db import connection
from django.db.models import F
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from capataz.database import Session
from capataz.errors import IllegalMove
from capataz.lifecycle import dispatch, execution, recovery, retention
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.execution import Finish, Grant
from capataz.lifecycle.retry import RETRYABLE, retry
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Outcome, Task
from capataz.policy import fixed
from capataz.sql import statement
from capataz.states import FINAL, HELD, State
from tests.lifecycle.stage import StagedWorker, release

WORKERS = 3
HOUR = timedelta(hours=1)
HOW = ["succeed", "fail", "fail for good", "lose", "give back", "snooze"]


class TaskLife(RuleBasedStateMachine):
    """The actors, and what they know."""

    tasks = Bundle("tasks")
    grants = Bundle("grants")

    def __init__(self) -> None:
        super().__init__()
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE capataz_task, capataz_attempt, capataz_event, capataz_worker")
        self.workers = [StagedWorker() for _ in range(WORKERS)]
        self.session = Session("test")
        self.known: dict[Any, str] = {}  # the state that each task had after the last step
        self.pruned: set[Any] = set()
        self.retried: set[Any] = set()  # by a person, in this step

    def teardown(self) -> None:
        try:
            self._bring_everything_to_an_end()
            self.rows_are_in_order()
        finally:
            self.session.close()
            for worker in self.workers:
                worker.session.close()

    @initialize(target=tasks, counts=st.lists(st.integers(1, 3), min_size=2, max_size=5))
    def some_are_there(self, counts: list[int]) -> Any:
        made = [self._submit(max_attempts=count) for count in counts]
        return multiple(*made)

    @initialize(target=grants)
    def some_are_claimed(self) -> Any:
        for _ in range(3):
            self._submit(max_attempts=3)
        self.release()
        return multiple(*self.workers[0].claim(*Task.objects.all()))

    # What clients and people do.

    @rule(target=tasks, later=st.booleans(), expiring=st.booleans(), max_attempts=st.integers(1, 3))
    def submit(self, later: bool, expiring: bool, max_attempts: int) -> Any:
        expires_at = timezone.now() + 2 * HOUR if expiring else None
        return self._submit(delay=3600 if later else None, expires_at=expires_at, max_attempts=max_attempts)

    @rule(task=tasks)
    def cancel(self, task: Any) -> None:
        if (row := self._row(task)) is None:
            return
        before = row.state
        try:
            after = cancel(row)
        except IllegalMove:
            assert before in FINAL - {State.CANCELLED}
        else:
            assert after.state == State.CANCELLED or (before in HELD and after.cancel_requested_at)

    @rule(task=tasks)
    def retry(self, task: Any) -> None:
        if (row := self._row(task)) is None:
            return
        before = row.state
        try:
            retry(row)
        except IllegalMove:
            assert before not in RETRYABLE
        else:
            assert before in RETRYABLE
            self.retried.add(task)

    # What the dispatcher does.

    @rule()
    def release(self) -> None:
        release(*Task.objects.filter(state=State.QUEUED))

    @rule()
    def time_passes(self) -> None:
        """An hour, for all that waits for its time or its deadline."""
        Task.objects.update(run_at=F("run_at") - HOUR, expires_at=F("expires_at") - HOUR)
        self.session.connection().execute(statement("release_due"), {"most": 1000})
        dispatch.expire(self.session.connection())

    @rule(which=st.integers(0, WORKERS - 1))
    def a_worker_dies(self, which: int) -> None:
        dead = self.workers[which]
        held = set(Task.objects.held_by(dead.id).values_list("pk", flat=True))
        dead.die()
        own = self.session.connection()
        assert recovery.bury(own, dead.id, dead.row().heartbeat_at, [], "it was killed")
        recovery.recover(own, dead.id)
        assert not Task.objects.filter(worker_id=dead.id).exists()
        assert Task.objects.filter(pk__in=held).count() == len(held)
        self.workers[which] = StagedWorker()

    @rule()
    def prune(self) -> None:
        ended = set(Task.objects.filter(state__in=FINAL).values_list("pk", flat=True))
        now = timedelta(0)
        retention.prune(succeeded=now, dead=now, cancelled=now, expired=now)
        self.pruned |= ended - set(Task.objects.values_list("pk", flat=True))

    # What workers do.

    @rule(target=grants, which=st.integers(0, WORKERS - 1))
    def claim(self, which: int) -> Any:
        """Everything there is, as after a storm of forged messages."""
        rows = list(Task.objects.all())
        now = timezone.now()
        free = {
            row.pk
            for row in rows
            if row.state == State.QUEUED
            and row.released_at is not None
            and (row.expires_at is None or row.expires_at > now)
        }
        granted = self.workers[which].claim(*rows) if rows else []
        assert {grant.id for grant in granted} == free
        return multiple(*granted)

    @rule(grant=grants)
    def start(self, grant: Grant) -> None:
        is_ours = self._holds(grant)
        shown = execution.mark_running(self.session.connection(), [(grant.id, grant.run, 0.5)])
        assert shown == ({grant.run} if is_ours else set())

    @rule(ends=st.lists(st.tuples(grants, st.sampled_from(HOW)), min_size=1, max_size=6))
    def end(self, ends: list[tuple[Grant, str]]) -> None:
        """Also under runs that are over, as workers do that were given up for dead."""
        for grant, how in ends:
            is_ours, before = self._holds(grant), self._row(grant.id)
            assert self._finish(grant, how) == is_ours
            if not is_ours:
                after = self._row(grant.id)
                assert (before is None) == (after is None)
                assert before is None or after is None or vars_of(before) == vars_of(after)

    # What has to be true after every step.

    @invariant()
    def rows_are_in_order(self) -> None:
        rows = {row.pk: row for row in Task.objects.all()}
        assert self.known.keys() - rows.keys() == self.pruned
        outcomes = Counter(Attempt.objects.values_list("task_id", "outcome"))
        living = {worker.id for worker in self.workers}
        for task, row in rows.items():
            successes = outcomes[task, "succeeded"]
            assert successes == (row.state == State.SUCCEEDED)
            assert (row.state in HELD) == (row.run is not None)
            assert row.state not in HELD or row.worker_id in living
            assert (row.state in FINAL) == (row.finished_at is not None)
            assert row.state not in (State.SCHEDULED, State.RETRYING) or row.run_at is not None
            before = State(self.known[task])
            if row.state != before and before in FINAL:
                assert task in self.retried
            self.known[task] = row.state
        self.retried.clear()

    def _bring_everything_to_an_end(self) -> None:
        worker = self.workers[0]
        for _ in range(10):
            for held in Task.objects.filter(state__in=HELD):
                row = (held.pk, held.run)
                self._finish_as(*row, State.SUCCEEDED, Outcome.SUCCEEDED)
            if not Task.objects.exclude(state__in=FINAL).exists():
                return
            self.time_passes()
            waiting = Task.objects.filter(state=State.QUEUED)
            release(*waiting)
            worker.claim(*waiting)
        left = list(Task.objects.exclude(state__in=FINAL).values_list("state", flat=True))
        raise AssertionError(f"tasks that cannot be brought to an end: {left}")

    def _submit(self, **options: Any) -> Any:
        task = submit("demo.echo", {"message": 1}, **options)
        self.known[task.pk] = task.state
        return task.pk

    def _finish(self, grant: Grant, how: str) -> bool:
        match how:
            case "succeed":
                return self._finish_as(grant.id, grant.run, State.SUCCEEDED, Outcome.SUCCEEDED)
            case "lose":
                state = execution.after_loss(grant.losses + 1)
                return self._finish_as(grant.id, grant.run, state, Outcome.LOST)
            case "give back":
                return self._finish_as(grant.id, grant.run, State.QUEUED, Outcome.GIVEN_BACK)
            case "snooze":
                return self._finish_as(grant.id, grant.run, State.SCHEDULED, Outcome.SNOOZED, 60)
        state, delay = execution.after_failure(
            fixed(60),
            attempts=grant.attempts + 1,
            max_attempts=grant.max_attempts,
            retryable=how == "fail",
        )
        return self._finish_as(grant.id, grant.run, state, Outcome.FAILED, delay)

    def _finish_as(self, task: Any, run: Any, state: State, outcome: Outcome, delay: float = 0.0) -> bool:
        own = self.session.connection()
        end = Finish(task, run, state, outcome, result="1", started_ago=0.5, delay=delay)
        with own.transaction():
            return execution.finish(own, [end]) == {task}

    def _holds(self, grant: Grant) -> bool:
        row = self._row(grant.id)
        return row is not None and row.run == grant.run

    def _row(self, task: Any) -> Task | None:
        return Task.objects.filter(pk=task).first()


def vars_of(row: Task) -> dict[str, Any]:
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}


def test_whatever_happens_in_whatever_order_no_task_is_lost_or_finished_twice(transactional_db: None) -> None:
    run_state_machine_as_test(TaskLife, settings=hypothesis.settings(max_examples=60, stateful_step_count=30))
