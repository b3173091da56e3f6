"""The ledger: the thread of a worker's parent that claims and finishes, many tasks in one commit.

Everything that queued up while one transaction ran goes into the next: no wait when idle, large batches
under load. A message is acknowledged only after the commit that settles its last task. While PostgreSQL
is away everything is kept, and said as soon as it is back.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
from django.conf import settings
from psycopg import errors as pg

from capataz import handlers
from capataz.cause import cause_of
from capataz.database import Connection, Session
from capataz.lifecycle import execution, presence, wakeup
from capataz.lifecycle.execution import Finish, Grant
from capataz.models import Outcome
from capataz.policy import own_backoff
from capataz.states import State
from capataz.worker.holding import Bundle, Ended, Ending, Held

# Seconds between two comparisons of what is held with what the rows say: with and without tasks here.
RECONCILE, RECONCILE_IDLE = 1.0, 5.0
RETRY_LOCKED = 0.05  # seconds until a row that somebody had locked is tried again
BATCH_BYTES = 4 * 1024 * 1024
BATCH_TASKS = 2_000
BATCH_LINES = 1_000
MOST_LINES = 20_000  # of logs that wait for the database; what comes beyond that is not kept

# Faults of a row, not of the connection: values the database cannot take. Splitting finds the row.
_ROW_FAULTS = (psycopg.Error, UnicodeError)
_ROW_FAULT_CLASSES = ("22", "23", "54")
# Faults that pass: a deadlock, a serialization failure, a lock that was not to be had in time.
_PASSING = (pg.DeadlockDetected, pg.SerializationFailure, pg.LockNotAvailable)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Announcement:
    """One message: the ids it announces and what acknowledges it."""

    type: str
    ids: list[uuid.UUID]
    acknowledge: Callable[[], None]
    runs: dict[uuid.UUID, int] = field(default_factory=dict)


@dataclass
class Callbacks:
    """What the ledger tells the rest of the worker; called in the ledger's thread."""

    granted: Callable[[Bundle], None]
    settled: Callable[[list[Ended], list[Bundle]], None]
    shown_running: Callable[[list[Held]], None]
    refused: Callable[[Announcement], None]
    stop_run: Callable[[Held, Ending, str], None]


class Ledger(threading.Thread):
    """Owns one connection, and the map of what this worker holds."""

    def __init__(self, worker_id: int, callbacks: Callbacks, running: Callable[[], list[Held]]) -> None:
        super().__init__(name="capataz-ledger", daemon=True)
        self.worker_id = worker_id
        self.held: dict[int, Held] = {}
        self.draining = False
        self._callbacks = callbacks
        self._running = running
        self._numbers = itertools.count(1)
        self._serials = itertools.count(1)
        self._announced: deque[Announcement] = deque()
        self._ended: deque[Ended] = deque()
        self._progress: dict[int, tuple[Held, int, str]] = {}
        self._log: deque[tuple[Held, float, int, str, str]] = deque()
        self._to_announce_anew = False
        self._unknown: deque[Announcement] = deque()
        self._withdrawn = 0.0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._awake = False
        self.session = Session("ledger", on_connect=self._compare_soon)
        self._reconciled = 0.0
        self._compared = 0.0
        self._patience = RECONCILE_IDLE
        self._stopping = False
        self._deadline = 0.0

    # Called from other threads.

    def announce(self, announcement: Announcement) -> None:
        """A message has come: claim its tasks."""
        self._announced.append(announcement)
        self.wake()

    def end(self, ended: list[Ended]) -> None:
        """Runs have ended: write it down."""
        self._ended.extend(ended)
        self.wake()

    def progress(self, held: Held, percent: int, message: str) -> None:
        """A task has said how far it is; only its latest word counts."""
        self._progress[held.run] = (held, percent, message)
        self.wake()

    def log(self, held: Held, at: float, level: int, logger: str, message: str) -> None:
        """A task has logged a line, at this time of the monotonic clock."""
        if len(self._log) < MOST_LINES:
            self._log.append((held, at, level, logger, message))
            self.wake()

    def announce_anew(self) -> None:
        """The connection to Redis was lost, and with it whatever message was on its way here."""
        self._to_announce_anew = True
        self.wake()

    def pass_on(self, announcement: Announcement) -> None:
        """A message has come whose type nobody here knows: have its tasks announced anew.

        About once a second, and the message is not acknowledged before: it occupies this worker meanwhile,
        which would take every copy of it before those who know its type had a chance.
        """
        self._unknown.append(announcement)
        self.wake()

    def wake(self) -> None:
        """Begin the next cycle soon."""
        if not self._awake:
            self._awake = True
            os.eventfd_write(self._wake, 1)

    def stop(self, deadline: float) -> None:
        """Write down what is left until ``deadline`` (monotonic seconds), give back the rest, and end."""
        self._stopping, self._deadline = True, deadline
        self.wake()

    def run(self) -> None:
        """Cycle until stopped; a fault of the database is waited out."""
        pause = 0.1
        while True:
            stopping = False
            try:
                self._wait()
                stopping = self._stopping
                self._cycle()
                pause = 0.1
                if stopping and (self._ended or self._log):
                    self.wake()
                elif stopping:
                    self._give_back_everything()
                    return
            except _PASSING:
                _log.info("the ledger repeats a cycle", exc_info=True)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                _log.warning("the ledger has no database and keeps %d outcomes: %s", len(self._ended), error)
                self.session.close()
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
                self.wake()
            except Exception:
                _log.exception("the ledger stumbled and goes on")
                self.session.close()
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
                self.wake()
            if stopping and time.monotonic() > self._deadline:
                return

    def _retry_soon(self) -> None:
        """Somebody had a row locked: not at once again, that would spin for as long as the lock is held."""
        self._patience = RETRY_LOCKED

    def _wait(self) -> None:
        busy = self.held or self._announced or self._ended or self._unknown
        patience = RECONCILE if busy else RECONCILE_IDLE
        patience, self._patience = min(patience, self._patience), RECONCILE_IDLE
        self._poll.poll(0 if self._awake else patience * 1000)
        self._awake = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _cycle(self) -> None:
        """One transaction for everything that waits."""
        announced = self._next_announcements()
        ended = self._next_ended()
        progress = list(self._progress.items())
        starts = [held for held in self._running() if held.told_running and not held.shown_running]
        lines = list(itertools.islice(self._log, BATCH_LINES))
        if announced or ended or progress or starts or lines:
            self._commit(announced, ended, progress, starts, lines)
        if self._to_announce_anew:
            presence.withdraw(self.session.connection(), self.worker_id)
            self._to_announce_anew = False
            wakeup.ring_on(self.session.connection())
        if self._unknown and time.monotonic() - self._withdrawn >= RECONCILE:
            self._withdraw_unknown()
        if time.monotonic() - self._reconciled >= RECONCILE:
            self._reconcile()

    def _withdraw_unknown(self) -> None:
        passed = list(self._unknown)
        ids = [task_id for each in passed for task_id in each.ids]
        known = [handler.name for handler in handlers.registered()]
        presence.withdraw_unknown(self.session.connection(), ids, known)
        self._withdrawn = time.monotonic()
        for each in passed:
            self._unknown.popleft()
            each.acknowledge()
        wakeup.ring_on(self.session.connection())

    def _commit(
        self,
        announced: list[Announcement],
        ended: list[Ended],
        progress: list[tuple[int, tuple[Held, int, str]]],
        starts: list[Held],
        lines: list[tuple[Held, float, int, str, str]],
    ) -> None:
        connection = self.session.connection()
        try:
            with connection.transaction():
                finished, busy = self._write_ended(connection, ended)
                shown = self._show_running(connection, starts)
                self._write_progress(connection, progress)
                self._write_log(connection, lines)
                grants = self._claim(connection, announced)
                locked = self._locked(connection, announced, grants)
        except _ROW_FAULTS as error:
            if not _is_row_fault(error):
                raise
            self._isolate(connection, ended)
            self.wake()
            return
        self._after_finish(ended, finished, busy)
        self._after_claim(announced, grants, locked)
        for run, said in progress:
            if self._progress.get(run) is said:
                del self._progress[run]
        for _ in lines:
            self._log.popleft()
        if self._log:
            self.wake()
        if shown:
            self._callbacks.shown_running(shown)

    # Claims.

    def _next_announcements(self) -> list[Announcement]:
        """The messages to claim for. They stay in the queue until the claim is known to have worked."""
        if self.draining:
            while self._announced:
                self._announced.popleft().acknowledge()
        taken: list[Announcement] = []
        tasks = 0
        for announcement in list(self._announced):
            if tasks >= BATCH_TASKS:
                self.wake()
                break
            taken.append(announcement)
            tasks += len(announcement.ids)
            for task_id in announcement.ids:
                announcement.runs.setdefault(task_id, self._new_run())
        return taken

    def _new_run(self) -> int:
        """A number that no run ever had: this incarnation's identity, and a counter."""
        return (self.worker_id << 32) | next(self._numbers)

    def _claim(self, connection: Connection, announced: list[Announcement]) -> list[Grant]:
        runs: dict[uuid.UUID, int] = {}
        for announcement in announced:
            for task_id, run in announcement.runs.items():
                runs.setdefault(task_id, run)  # announced twice at once: one run is enough
        return execution.claim(connection, self.worker_id, list(runs.items())) if runs else []

    def _locked(
        self, connection: Connection, announced: list[Announcement], grants: list[Grant]
    ) -> set[uuid.UUID]:
        got = {grant.id for grant in grants}
        missing = {task_id for each in announced for task_id in each.runs} - got
        return execution.still_grantable(connection, list(missing)) if missing else set()

    def _after_claim(
        self, announced: list[Announcement], grants: list[Grant], locked: set[uuid.UUID]
    ) -> None:
        granted = {grant.run: grant for grant in grants}
        for announcement in announced:
            mine = [granted.pop(run) for run in announcement.runs.values() if run in granted]
            self._announced.remove(announcement)
            left = [task_id for task_id in announcement.runs if task_id in locked]
            if left:
                again = Announcement(announcement.type, left, announcement.acknowledge)
                announcement.acknowledge = _nothing
                self._announced.append(again)
                self._retry_soon()
            if mine:
                self._start(announcement, mine)
            else:
                self._callbacks.refused(announcement)

    def _start(self, announcement: Announcement, grants: list[Grant]) -> None:
        by_type: dict[str, list[Grant]] = {}
        for grant in grants:
            if not handlers.is_registered(grant.type):
                self._give_back_unknown(grant)
                continue
            by_type.setdefault(grant.type, []).append(grant)
        # A forged message may name tasks of another type than its own, or of several.
        acknowledge = _after(len(by_type), announcement.acknowledge)
        if not by_type:
            announcement.acknowledge()
        for task_type, group in by_type.items():
            self._start_bundle(Bundle(next(self._serials), task_type, acknowledge), group)

    def _start_bundle(self, bundle: Bundle, grants: Sequence[Grant]) -> None:
        handler = handlers.find(bundle.type)
        for index, grant in enumerate(grants):
            held = Held.granted(grant, handler, bundle, index)
            bundle.items.append(held)
            self.held[held.run] = held
        bundle.open = len(bundle.items)
        self._callbacks.granted(bundle)

    def _give_back_unknown(self, grant: Grant) -> None:
        """A task whose type this worker does not know, whatever its message said: others may know it."""
        self._give_back([Finish(grant.id, grant.run, State.QUEUED, Outcome.GIVEN_BACK)])

    def _give_back(self, backs: list[Finish]) -> None:
        connection = self.session.connection()
        with connection.transaction():
            execution.finish(connection, backs)

    # Finishes.

    def _next_ended(self) -> list[Ended]:
        """What to write in this cycle, cut so that no batch grows without bound."""
        taken: list[Ended] = []
        size = 0
        for ended in list(self._ended):
            size += len(ended.result or "") + len(ended.traceback or "")
            if taken and (size > BATCH_BYTES or len(taken) >= BATCH_TASKS):
                self.wake()
                break
            taken.append(ended)
        return taken

    def _write_ended(
        self, connection: Connection, ended: list[Ended], *, recorded: bool = True
    ) -> tuple[set[uuid.UUID], set[uuid.UUID]]:
        """(finished, locked): the ids that have ended, and those to be tried again."""
        if not ended:
            return set(), set()
        now = time.monotonic()
        finishes = [to_finish(each, now) for each in ended]
        finished = execution.finish(connection, finishes, recorded=recorded)
        missing = [(each.held.id, each.held.run) for each in ended if each.held.id not in finished]
        return finished, execution.still_held(connection, missing) if missing else set()

    def _after_finish(self, ended: list[Ended], finished: set[uuid.UUID], locked: set[uuid.UUID]) -> None:
        bundles: list[Bundle] = []
        settled = [each for each in ended if each.held.id not in locked]
        if locked:
            self._retry_soon()
        for each in settled:
            self._ended.remove(each)
            held = each.held
            self._progress.pop(held.run, None)
            if self.held.pop(held.run, None) is None:
                continue
            if held.id not in finished:
                _log.warning("task %s: the outcome of run %d was refused", held.id, held.run)
            held.bundle.open -= 1
            if held.bundle.open == 0:
                bundles.append(held.bundle)
        if settled:
            self._callbacks.settled(settled, bundles)
        if any(each.held.in_workflow or each.ending in (Ending.LOST, Ending.GIVEN_BACK) for each in settled):
            # They or others wait again, and somebody may be idle: if it fails, the dispatcher looks itself.
            with contextlib.suppress(psycopg.Error):
                wakeup.ring_on(self.session.connection())

    def _isolate(self, connection: Connection, ended: list[Ended]) -> None:
        """One of these outcomes cannot be stored: halve until it is alone, and fail that task."""
        if not ended:
            raise RuntimeError("a statement without outcomes met a data error")
        try:
            with connection.transaction():
                finished, locked = self._write_ended(connection, ended)
        except _ROW_FAULTS as error:
            if not _is_row_fault(error):
                raise
            if len(ended) > 1:
                middle = len(ended) // 2
                self._isolate(connection, ended[:middle])
                self._isolate(connection, ended[middle:])
                return
            _log.warning("task %s: its result cannot be stored: %s", ended[0].held.id, error)
            finished, locked = self._write_alone(connection, ended[0])
        self._after_finish(ended, finished, locked)

    def _write_alone(self, connection: Connection, ended: Ended) -> tuple[set[uuid.UUID], set[uuid.UUID]]:
        """An outcome that cannot be stored as it is, as much of it as can be."""
        failed = cannot_be_stored(ended)
        # A TaskResult that cannot be written costs only itself: the outcome stays what it is.
        for outcome, recorded in ((ended, False), (failed, True)):
            try:
                with connection.transaction():
                    return self._write_ended(connection, [outcome], recorded=recorded)
            except _ROW_FAULTS as error:
                if not _is_row_fault(error):
                    raise
        with connection.transaction():
            return self._write_ended(connection, [failed], recorded=False)

    # What runs.

    def _show_running(self, connection: Connection, starts: list[Held]) -> list[Held]:
        now = time.monotonic()
        started = [(held.id, held.run, now - (held.started or now)) for held in starts if not held.ended]
        if not started:
            return []
        shown = execution.mark_running(connection, started)
        told = [held for held in starts if held.run in shown]
        for held in told:
            held.shown_running = True
        return told

    def _write_progress(
        self, connection: Connection, progress: list[tuple[int, tuple[Held, int, str]]]
    ) -> None:
        if progress:
            said = [(held.id, run, percent, text) for run, (held, percent, text) in progress]
            execution.report_progress(connection, said)

    # What is held.

    def _write_log(self, connection: Connection, lines: list[tuple[Held, float, int, str, str]]) -> None:
        if lines:
            now = time.monotonic()
            said = [
                execution.Said(held.id, held.run, now - at, level, logger, message)
                for held, at, level, logger, message in lines
            ]
            execution.write_log(connection, said)

    def _compare_soon(self, _: Connection) -> None:
        """After a reconnect nobody knows what became of the last transaction."""
        self._reconciled = self._compared = 0.0

    def _reconcile(self) -> None:
        """Compare what this worker holds with what the rows say: neither may keep what the other lost."""
        self._reconciled = time.monotonic()
        if not self.held and self._reconciled - self._compared < RECONCILE_IDLE:
            return
        self._compared = self._reconciled
        rows = execution.held_rows(self.session.connection(), self.worker_id)
        granted = {run for _, run, _ in rows}
        orphans = [(task_id, run) for task_id, run, _ in rows if run not in self.held]
        if orphans:
            backs = [Finish(task_id, run, State.QUEUED, Outcome.GIVEN_BACK) for task_id, run in orphans]
            self._give_back(backs)
            _log.warning("gave back %d tasks that the rows said were held here", len(backs))
        for run in {run for _, run, cancelled in rows if cancelled} & self.held.keys():
            self._callbacks.stop_run(self.held[run], Ending.CANCELLED, "cancelled while it ran")
        for run in self.held.keys() - granted:
            self._callbacks.stop_run(self.held[run], Ending.GIVEN_BACK, "its run was taken from this worker")

    def _give_back_everything(self) -> None:
        """The last statement of a worker that stops: no row may go on naming it."""
        rows = execution.held_rows(self.session.connection(), self.worker_id)
        if rows:
            backs = [
                Finish(task_id, run, State.QUEUED, Outcome.GIVEN_BACK, counted=True)
                for task_id, run, _ in rows
            ]
            self._give_back(backs)


def to_finish(ended: Ended, now: float) -> Finish:
    """What an ending means for its task, by the policy of its handler. ``now`` is monotonic."""
    held = ended.held
    state, outcome, delay, error = _fate(ended)
    return Finish(
        held.id,
        held.run,
        state,
        outcome,
        result=ended.result,
        error=error,
        traceback=ended.traceback,
        started_ago=None if held.started is None else max(0.0, now - held.started),
        ended_ago=max(0.0, now - ended.ended),
        delay=delay,
        counted=ended.counted,
        cause=cause_of(error, ended.traceback) if state is State.DEAD else None,
        failed=_verdict(ended),
        type=held.type,
    )


def _verdict(ended: Ended) -> bool | None:
    """What an ending says to the circuit of its type: a failure, a success, or nothing."""
    circuit, started = ended.held.handler.circuit, ended.held.started
    if circuit is None or started is None or ended.excused:
        return None
    if ended.ending is Ending.SUCCEEDED:
        return ended.ended - started > circuit.timeout
    return True if ended.ending is Ending.FAILED and ended.retryable else None


def _fate(ended: Ended) -> tuple[State, Outcome, float, str | None]:
    """(state, outcome, seconds to wait, error) that an ending leads to."""
    held = ended.held
    match ended.ending:
        case Ending.SUCCEEDED:
            return State.SUCCEEDED, Outcome.SUCCEEDED, 0.0, None
        case Ending.FAILED:
            attempts, most = held.attempts + 1, held.max_attempts
            if held.handler.is_durable and ended.delay is not None and most == held.handler.retry.attempts:
                most = attempts + 1  # its function counts by itself, unless a limit came with the submission
            state, delay = execution.after_failure(
                own_backoff(held.backoff) if held.backoff else held.handler.retry,
                attempts=attempts,
                max_attempts=most,
                retryable=ended.retryable,
                delay=ended.delay,
            )
            return state, Outcome.FAILED, delay, ended.error
        case Ending.SNOOZED:
            return _fate_of_snoozed(ended)
        case Ending.LOST:
            losses = held.losses + 1
            state, error = execution.after_loss(losses), ended.error
            if state is State.DEAD:
                error = f"quarantined after {losses} deaths of its process; {error}"
            return state, Outcome.LOST, 0.0, error
        case Ending.CANCELLED:
            return State.CANCELLED, Outcome.CANCELLED, 0.0, ended.error
        case Ending.GIVEN_BACK:
            state = State.QUEUED if ended.delay is None else State.RETRYING
            return state, Outcome.GIVEN_BACK, ended.delay or 0.0, ended.error


def _fate_of_snoozed(ended: Ended) -> tuple[State, Outcome, float, str | None]:
    snoozes = ended.held.snoozes
    if snoozes < settings.MAX_SNOOZES:
        return State.SCHEDULED, Outcome.SNOOZED, ended.delay or 0.0, ended.error
    return State.DEAD, Outcome.FAILED, 0.0, f"has been snoozed {snoozes} times, which is the most"


def cannot_be_stored(ended: Ended) -> Ended:
    """The same end as a failed attempt that says why nothing more is known of it."""
    return Ended(
        ended.held, Ending.FAILED, ended.ended, error="the result cannot be stored: PostgreSQL refused it"
    )


def _is_row_fault(error: Exception) -> bool:
    """Whether a value is at fault, and not the connection or the moment."""
    if isinstance(error, psycopg.Error):
        return error.sqlstate is not None and error.sqlstate[:2] in _ROW_FAULT_CLASSES
    return isinstance(error, UnicodeError)


def _nothing() -> None:
    """Acknowledges nothing: another announcement does."""


def _after(calls: int, callback: Callable[[], None]) -> Callable[[], None]:
    """A function that calls ``callback`` the last of ``calls`` times it is called."""
    left = calls

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            callback()

    return count
