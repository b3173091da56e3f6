"""The heartbeat: a thread of the worker's parent that shows that it lives.

It needs no event loop (kombu's stands still for as long as Redis is away) and reports how late that
one is, so that a parent that hangs is not taken for one that works.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psutil
import psycopg
from celery.worker.state import maybe_shutdown
from django.conf import settings

from capataz.database import Backend, Connection, Session
from capataz.lifecycle import presence
from capataz.lifecycle.presence import Sign

LOAD_EVERY = 2.0  # seconds between two measurements of CPU and memory

STDERR = 2  # Celery has put something without a descriptor in the place of sys.stderr

_log = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """Owns one connection and, through it, the lock on this worker's identity."""

    def __init__(
        self,
        register: Callable[[Connection], int],
        sign: Callable[[], Sign],
        on_new_identity: Callable[[int], None],
        on_hung: Callable[[], None],
        on_deaf: Callable[[], None],
        on_beat: Callable[[], None],
        processes: int,
    ) -> None:
        super().__init__(name="capataz-heartbeat", daemon=True)
        self._register = register
        self._sign = sign
        self._on_new_identity = on_new_identity
        self._on_hung = on_hung
        self._on_deaf = on_deaf
        self._on_beat = on_beat
        self._processes = processes
        self._seems_hung = False
        self.session = Session("heartbeat", on_connect=self._hold_lock)
        self._backend: Backend | None = None
        self._stopping = threading.Event()
        self._load = Load()
        self._notes: deque[tuple[str, dict[str, Any]]] = deque()
        self.worker_id = 0

    def enroll(self) -> int:
        """Register this worker; called once before the thread starts. Waits for the database.

        Raises WorkerShutdown or WorkerTerminate if the worker is asked to stop meanwhile.
        """
        while True:
            try:
                self.worker_id = self._register(self.session.connection())
                return self.worker_id
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                _log.warning("cannot register this worker yet: %s", error)
                self.session.close()
                maybe_shutdown()
                time.sleep(1)

    def run(self) -> None:
        """Beat until stopped."""
        while not self._stopping.wait(settings.HEARTBEAT):
            try:
                self._beat()
                self._on_beat()
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                _log.warning("a heartbeat did not get through: %s", error)
                self.session.close()
            except Exception:
                _log.exception("the heartbeat stumbled and goes on")

    def stop(self) -> None:
        """Beat no more, say that the worker stops, and free its lock."""
        self._stopping.set()
        if threading.current_thread() is not self:
            self.join(timeout=5)
        try:
            presence.unregister(self.session.connection(), self.worker_id)
        except psycopg.Error as error:
            _log.warning("could not say that this worker stops: %s", error)
        self.session.close()

    def note(self, kind: str, **detail: Any) -> None:
        """An event about this worker, written with the next beat."""
        self._notes.append((kind, detail))

    def _hold_lock(self, connection: Connection) -> None:
        if self.worker_id:
            presence.hold_lock(connection, self.worker_id, left=self._backend)
        self._backend = self.session.backend

    def _beat(self) -> None:
        sign = self._sign()
        sign.cpu_percent, sign.ram_mb = self._load.measure()
        # At two beats: after a sleep of the whole process, as with its machine, the loop turns soon.
        seemed_hung, self._seems_hung = self._seems_hung, sign.loop_lag > settings.HUNG
        if sign.phase == "running" and seemed_hung and self._seems_hung:
            _log.critical("the event loop has been silent for %.0f s: giving everything back", sign.loop_lag)
            faulthandler.dump_traceback(STDERR)  # where it stands, for whoever has to find out why
            self._on_hung()
        connection = self.session.connection()
        sign.backends = [backend for backend in (self.session.backend, *sign.backends) if backend]
        if not presence.beat(connection, self.worker_id, sign):
            _log.error("worker %d was given up for dead: going on under a new identity", self.worker_id)
            self.worker_id = self._register(connection)
            self._on_new_identity(self.worker_id)
        self._compare(sign.processes)
        while self._notes:
            kind, detail = self._notes[0]
            presence.tell(connection, self.worker_id, kind, detail)
            self._notes.popleft()
        if sign.quiet >= settings.DEAF:
            self._listen_again(connection, sign.quiet)

    def _compare(self, processes: int) -> None:
        """A burst of work makes the pool grow in many steps; one event says it all."""
        if processes and processes != self._processes:
            self.note("worker.scaled", before=self._processes, after=processes)
            self._processes = processes

    def _listen_again(self, connection: Connection, quiet: float) -> None:
        """Connect anew if there is work of which this idle worker should have heard."""
        if presence.is_deaf(connection, self.worker_id, settings.DEAF):
            _log.error("tasks wait and no message came for %.0f s: connecting anew", quiet)
            detail = {"quietSeconds": round(quiet)}
            presence.tell(connection, self.worker_id, "worker.reconnected", detail)
            self._on_deaf()


class Load:
    """CPU and memory of this process and its children, measured now and then."""

    def __init__(self) -> None:
        self._measured = 0.0
        self._cpu_seconds = 0.0
        self._latest = (0.0, 0.0)

    def measure(self) -> tuple[float, float]:
        """(percent of one core since the last measurement, MiB resident)."""
        now = time.monotonic()
        if now - self._measured < LOAD_EVERY:
            return self._latest
        seconds, memory = _usage(os.getpid())
        if self._measured:
            percent = max(0.0, 100 * (seconds - self._cpu_seconds) / (now - self._measured))
            self._latest = (round(percent, 1), round(memory / 2**20, 1))
        self._measured, self._cpu_seconds = now, seconds
        return self._latest


def _usage(pid: int) -> tuple[float, int]:
    seconds, memory = 0.0, 0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0.0, 0
    for process in family:
        try:
            with process.oneshot():
                times = process.cpu_times()
                seconds += times.user + times.system
                memory += process.memory_info().rss
        except psutil.Error:
            continue
    return seconds, memory
