"""The watch: a thread of the worker's parent that reads reports and enforces limits.

It needs neither PostgreSQL nor the event loop, so that limits hold while either is away. What it finds
out it hands to the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from django.conf import settings

from capataz.lifecycle.recovery import LOOK
from capataz.servers import SILENT_PEER
from capataz.worker.channel import Channel
from capataz.worker.child import EXCUSED, HELD_OFF, INTERRUPTED, LOG, PROGRESS, SNOOZED, SUCCEEDED
from capataz.worker.holding import Bundle, Ended, Ending, Held

# A bundle whose current task runs longer than this gives its other tasks to idle children.
SLOW = 0.2  # seconds
# A task that still runs after this long is written down as running.
SHOW = 0.02  # seconds
# A child that is done with a bundle may have missed a token that was on its way back into the pipe: it is
# looked for this often.
STRAY = 0.1  # seconds
# After this part of the shortest silence for which others may give it up, a worker that is cut off stops what
# must not run twice.
CUT_OFF = 0.8
# A bundle that no child has begun after this long waits behind something: its tasks are better off elsewhere.
UNBEGUN = 5.0  # seconds
# A task of a bundle that its child is done with, and of which nothing was heard for this long, is lost.
UNHEARD = 2.0  # seconds
# A cancelled handler has this long to clean up before its process is killed.
CANCEL_GRACE = 5.0  # seconds

# What a child says of a task that it has ended itself; everything else is a failure.
_ENDINGS = {SUCCEEDED: Ending.SUCCEEDED, SNOOZED: Ending.SNOOZED, HELD_OFF: Ending.GIVEN_BACK}

_log = logging.getLogger(__name__)


class Watch(threading.Thread):
    """Follows every bundle from its start in a child to its end.

    ``on_ended``, ``on_progress``, ``on_log`` and ``on_running`` are called in this thread and must only
    note what they are told.
    """

    def __init__(
        self,
        channel: Channel,
        on_ended: Callable[[list[Ended]], None],
        on_progress: Callable[[Held, int, str], None],
        on_log: Callable[[Held, float, int, str, str], None],
        on_running: Callable[[], None],
        exit_of: Callable[[int], int | None],
    ) -> None:
        super().__init__(name="capataz-watch", daemon=True)
        self._channel = channel
        self._on_ended = on_ended
        self._on_progress = on_progress
        self._on_log = on_log
        self._on_running = on_running
        self._exit_of = exit_of
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._orders: deque[Callable[[], None]] = deque()
        self._bundles: dict[int, Bundle] = {}
        self._pidfds: dict[int, int] = {}  # pid -> pidfd
        self._pids: dict[int, int] = {}  # pidfd -> pid
        self._ended: list[Ended] = []
        self._stopping = False
        self._drain_at: float | None = None
        self._heard_at = time.monotonic()

    # Called from other threads.

    def follow(self, bundle: Bundle) -> None:
        """Expect reports about this bundle; called before its tokens are put."""
        bundle.followed_at = time.monotonic()
        self._bundles[bundle.serial] = bundle

    def forget(self, bundle: Bundle) -> None:
        """Nothing more is expected of this bundle."""
        self._bundles.pop(bundle.serial, None)

    def stop_run(self, held: Held, reason: Ending, text: str, *, grace: float = CANCEL_GRACE) -> None:
        """End this run early: at once if it has not started, else by signal and then by force."""
        self._order(lambda: self._stop_run(held, reason, text, grace))

    def take_back(self, bundle: Bundle) -> None:
        """Give back the tasks of this bundle that no child has taken."""
        self._order(lambda: self._take_back(bundle))

    def heard(self) -> None:
        """A heartbeat has got through to PostgreSQL."""
        self._heard_at = time.monotonic()

    def drain(self, deadline: float) -> None:
        """The worker stops: give back what has not started now, and what still runs at ``deadline``."""
        self._drain_at = deadline
        self._order(self._take_all_back)

    def abandon(self, bundle: Bundle, text: str, *, child_died: bool) -> None:
        """The pool says that this bundle is over although not all of its tasks have been reported."""
        self._order(lambda: self._abandon(bundle, text, child_died))

    def stop(self) -> None:
        """End the thread after one more look at the reports."""
        self._stopping = True
        self._order(lambda: None)

    def running(self) -> list[Held]:
        """The tasks that children are working on now."""
        bundles = list(self._bundles.values())
        return [bundle.current for bundle in bundles if bundle.current is not None]

    # The thread.

    def run(self) -> None:
        """Wait for reports, deaths, orders and limits until stopped."""
        self._poll = select.poll()
        self._poll.register(self._channel.reports.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        while True:
            try:
                stopping = self._stopping
                self._look()
                if stopping:
                    return
            except Exception:
                _log.exception("the watch stumbled and goes on")
                time.sleep(0.1)

    def _look(self) -> None:
        ready = [fd for fd, _ in self._poll.poll(self._patience() * 1000)]
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        # Deaths are judged after the reports that the dead have left behind.
        self._read_reports()
        while self._orders:
            self._orders.popleft()()
        for fd in ready:
            if fd in self._pids:
                self._bury(fd)
        self._enforce()
        if self._ended:
            ended, self._ended = self._ended, []
            self._on_ended(ended)

    def _patience(self) -> float:
        """Seconds until something has to be done that nothing will announce."""
        if self._stopping:
            return 0.0
        soonest = 60.0
        now = time.monotonic()
        for bundle in list(self._bundles.values()):
            held = bundle.current
            if bundle.over and bundle.is_incomplete():
                soonest = min(soonest, STRAY)
            if bundle.pid is None:
                soonest = min(soonest, max(STRAY, bundle.followed_at + UNBEGUN - now))
            if held is not None and held.handler.exclusive:
                soonest = min(soonest, 1.0)
            if held is None or held.started is None:
                continue
            due = held.kill_at or held.started + held.time_limit
            if held.kill_at is None and self._drain_at is not None:
                due = min(due, self._drain_at)
            if not held.told_running:
                due = min(due, held.started + SHOW)
            if len(bundle.items) > 1 and now - held.started < SLOW:
                due = min(due, held.started + SLOW)
            soonest = min(soonest, due - now)
        return max(0.0, soonest) + 0.001

    def _read_reports(self) -> None:
        for kind, pid, serial, *rest in self._channel.reports.receive():
            bundle = self._bundles.get(serial)
            if bundle is None:
                continue
            if kind == PROGRESS:
                index, percent, message = rest
                self._on_progress(bundle.items[index], percent, message)
            elif kind == LOG:
                index, *said = rest
                self._on_log(bundle.items[index], *said)
            else:
                self._step(bundle, pid, *rest)

    def _step(self, bundle: Bundle, pid: int, ended: Any, started: Any) -> None:
        if pid not in self._pidfds:
            self._open_pidfd(pid)
        if bundle.pid not in (None, pid):  # the pool has sent the rest of a dead child's job to another
            self._end_current(bundle, self._known_exit(bundle.pid or 0))
        bundle.pid = pid
        if ended is not None:
            self._end_reported(bundle.items[ended[0]], *ended[1:])
        if started is None:
            bundle.current, bundle.over, bundle.over_at = None, True, time.monotonic()
            self._take_back(bundle)
            return
        held = bundle.items[started[0]]
        held.started = started[1]
        bundle.current = held

    def _end_reported(
        self,
        held: Held,
        how: str,
        result: str | None,
        error: str | None,
        traceback: str | None,
        retryable: bool,
        delay: float | None,
        at: float,
    ) -> None:
        ending = _ENDINGS.get(how, Ending.FAILED)
        if how != SUCCEEDED and held.stop_reason is not None:
            ending, error, delay = held.stop_reason, held.stop_text, None
        elif how == INTERRUPTED:  # the signal was meant for the task before it
            ending, delay = Ending.GIVEN_BACK, None
        told = {"error": error, "traceback": traceback, "retryable": retryable, "delay": delay}
        self._end(held, ending, at=at, result=result, excused=how == EXCUSED, **told)

    def _end(self, held: Held, ending: Ending, *, at: float | None = None, **details: Any) -> None:
        if not held.ended:
            held.ended = True
            # What a stopping worker gives back is counted, so that a task that never gets a chance shows.
            details["counted"] = ending is Ending.GIVEN_BACK and self._drain_at is not None
            self._ended.append(Ended(held, ending, time.monotonic() if at is None else at, **details))

    def _open_pidfd(self, pid: int) -> None:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            # Dead and reaped already: judge it when its reports are all read.
            self._orders.append(lambda: self._judge(pid, self._known_exit(pid)))
            return
        self._pidfds[pid], self._pids[fd] = fd, pid
        self._poll.register(fd, select.POLLIN)

    def _bury(self, fd: int) -> None:
        pid = self._pids.pop(fd)
        del self._pidfds[pid]
        self._poll.unregister(fd)
        status = _exit_status(fd)
        os.close(fd)
        if status is None:
            status = self._known_exit(pid)
        self._read_reports()
        self._judge(pid, status)

    def _known_exit(self, pid: int) -> int | None:
        """How a child ended that the main thread has reaped; it may be writing that down just now."""
        for _ in range(20):
            if (status := self._exit_of(pid)) is not None:
                return status
            time.sleep(0.005)
        return None

    def _judge(self, pid: int, status: int | None) -> None:
        """Decide what became of the tasks of a dead child."""
        for bundle in [each for each in list(self._bundles.values()) if each.pid == pid]:
            self._end_current(bundle, status)
            self._take_back(bundle)
            for item in bundle.items:  # a token that was read and never reported: not an attempt
                self._end(item, Ending.GIVEN_BACK)

    def _end_current(self, bundle: Bundle, status: int | None) -> None:
        """The child is dead: decide what became of the task that it was running."""
        held, bundle.current = bundle.current, None
        if held is None or held.ended:
            return
        if held.stop_reason is not None:
            self._end(held, held.stop_reason, error=held.stop_text)
        elif self._drain_at is not None or bundle.killed:
            # Ended by the worker's own stop, or by a kill that was meant for the task before it.
            self._end(held, Ending.GIVEN_BACK)
        else:
            self._end(held, Ending.LOST, error=f"its process died: {describe_exit(status)}")

    def _abandon(self, bundle: Bundle, text: str, child_died: bool) -> None:
        if child_died and bundle.pid is not None:
            return  # its death is judged when its pidfd says so
        held, bundle.current = bundle.current, None
        if held is not None:
            self._end(held, Ending.FAILED, error=f"its outcome could not be reported: {text}")
        self._take_back(bundle)
        for item in bundle.items:
            self._end(item, Ending.GIVEN_BACK)

    def _take_back(self, bundle: Bundle) -> None:
        if bundle.pipe < 0:
            return
        for index in self._channel.tokens[bundle.pipe].take_all(bundle.serial):
            self._end(bundle.items[index], Ending.GIVEN_BACK)

    def _take_all_back(self) -> None:
        for bundle in list(self._bundles.values()):
            self._take_back(bundle)

    def _give_up(self, bundle: Bundle) -> None:
        """What a living child has neither run nor left: its token or its report went missing."""
        for item in bundle.items:
            if item.started is None:
                self._end(item, Ending.GIVEN_BACK)
            else:
                self._end(item, Ending.LOST, error="its outcome went missing on the way")

    def _stop_run(self, held: Held, reason: Ending, text: str, grace: float) -> None:
        if held.ended or held.stop_reason is not None:
            return
        held.stop_reason, held.stop_text = reason, text
        waits_for_a_pipe = held.bundle.pipe < 0
        if held.started is None and (waits_for_a_pipe or self._take_one(held)):
            self._end(held, reason, error=text)
            return
        held.kill_at = time.monotonic() + (grace and grace + held.handler.cancel_grace)
        if grace and held.bundle.current is held and held.bundle.pid:
            _signal(held.bundle.pid, signal.SIGUSR2)

    def _take_one(self, held: Held) -> bool:
        """Take this task's token, leaving the others of its bundle."""
        bundle = held.bundle
        tokens = self._channel.tokens[bundle.pipe]
        indexes = tokens.take_all(bundle.serial)
        others = [index for index in indexes if index != held.index]
        if others:
            tokens.put(bundle.serial, others)
            if bundle.over:  # its child found the pipe empty meanwhile
                self._take_back(bundle)
        return held.index in indexes

    def _enforce(self) -> None:
        now = time.monotonic()
        if self._drain_at is not None:
            self._take_all_back()
        for bundle in list(self._bundles.values()):
            held = bundle.current
            if bundle.over and bundle.is_incomplete():
                self._take_back(bundle)
                if now > bundle.over_at + UNHEARD:
                    self._give_up(bundle)
            if bundle.pid is None and now > bundle.followed_at + UNBEGUN:
                self._take_back(bundle)
            if held is None or held.started is None or held.ended:
                continue
            if not held.told_running and now >= held.started + SHOW:
                held.told_running = True
                self._on_running()
            if held.kill_at is None and now >= held.started + held.time_limit:
                held.stop_reason = Ending.FAILED
                held.stop_text = f"hard time limit of {held.time_limit:g} s exceeded; its process was killed"
                held.kill_at = now
            if held.kill_at is None and held.handler.exclusive and now >= self._heard_at + cut_off():
                held.stop_reason, held.stop_text = Ending.GIVEN_BACK, "its worker is cut off from PostgreSQL"
                held.kill_at = now
            if held.kill_at is None and self._drain_at is not None and now >= self._drain_at:
                held.stop_reason, held.stop_text = Ending.GIVEN_BACK, "its worker was asked to stop"
                held.kill_at = now
            if held.kill_at is not None and now >= held.kill_at:
                held.kill_at = now + 1.0  # again, should the first signal hit nobody
                bundle.killed = True
                assert bundle.pid is not None
                _kill_group(bundle.pid)
            elif now >= held.started + SLOW and bundle.open > 1:
                self._take_back(bundle)

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        os.eventfd_write(self._wake, 1)


def cut_off() -> float:
    """For how many seconds no heartbeat may have got through before exclusive tasks are stopped.

    PostgreSQL frees the lock of a worker that does not answer, and then few looks are enough.
    """
    return CUT_OFF * min(settings.LOOKS_WITHOUT_BEAT * LOOK, SILENT_PEER)


def describe_exit(status: int | None) -> str:
    """A signal's name, an exit code, or that nobody knows; ``status`` is negative for a signal."""
    if status is None:
        return "nobody saw how"
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"exit code {status}"


def _exit_status(pidfd: int) -> int | None:
    """How the process ended, without reaping it: that is billiard's business, which may be faster."""
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except OSError:
        return None
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _kill_group(pid: int) -> None:
    """Kill a child and whatever it started in its own process group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
