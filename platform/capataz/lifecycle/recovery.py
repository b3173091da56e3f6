"""Recovery: seeing that a worker has died, and taking its tasks back. Never touches Redis."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from django.conf import settings

from capataz import backoff
from capataz.database import Connection, Session
from capataz.lifecycle import presence, task_results, wakeup
from capataz.lifecycle.task_results import Record
from capataz.sql import statement
from capataz.states import FINAL

LOOK = 1.0  # seconds between two looks
# After a gap of more than this between two looks, what was seen before counts no more: the database or
# this process stood still, and a stall must not look like mass death.
LARGEST_GAP = 2.0  # seconds, beyond which the count of looks starts again

_log = logging.getLogger(__name__)


@dataclass
class Sighting:
    """What the last looks saw of one worker."""

    heartbeat: datetime
    silent_looks: int = 0


class Recovery(threading.Thread):
    """Looks after the workers once a second, with a connection of its own."""

    def __init__(self) -> None:
        super().__init__(name="capataz-recovery", daemon=True)
        self._session = Session("recovery", on_connect=lambda _: self._start_again())
        self._postmaster: datetime | None = None
        self._sightings: dict[int, Sighting] = {}
        self._looked_at: float | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def run(self) -> None:
        """Look until stopped; a fault of the database is waited out, and the count starts again."""
        while not self._stopping.wait(LOOK):
            try:
                self.look()
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                _log.warning("recovery has no database: %s", error)
                self._session.close()
            except Exception:
                _log.exception("recovery stumbled and goes on")
                self._session.close()

    def look(self) -> None:
        """One look at every worker; buries the dead and recovers what they hold."""
        connection = self._session.connection()
        self._mind_the_gap(connection)
        workers = connection.execute(statement("silent_workers"), {"lock": presence.LOCK_CLASS}).fetchall()
        self._sightings = {row[0]: self._sight(row) for row in workers}
        for worker_id, name, heartbeat, backends, session_is_gone in workers:
            looks = self._sightings[worker_id].silent_looks
            because = verdict(looks, session_is_gone)
            if because and bury(connection, worker_id, heartbeat, backends, because):
                _log.error("worker %s is dead: %s", name, because)
        for [worker_id] in connection.execute(statement("orphans")).fetchall():
            recover(connection, worker_id)

    def _sight(self, row: Any) -> Sighting:
        worker_id, _, heartbeat, _, _ = row
        before = self._sightings.get(worker_id)
        if before is None or before.heartbeat != heartbeat:
            return Sighting(heartbeat)
        return Sighting(heartbeat, before.silent_looks + 1)

    def _mind_the_gap(self, connection: Connection) -> None:
        now = time.monotonic()
        [[started]] = connection.execute("SELECT pg_postmaster_start_time()").fetchall()
        gap = self._looked_at is None or now - self._looked_at > LARGEST_GAP
        if gap or started != self._postmaster:
            self._sightings.clear()
        self._looked_at, self._postmaster = now, started

    def _start_again(self) -> None:
        self._sightings.clear()
        self._looked_at = None


def verdict(silent_looks: int, session_is_gone: bool) -> str:
    """Why a worker that has been silent for so many looks is dead; empty if it is not yet."""
    if session_is_gone and silent_looks >= settings.LOOKS_WITH_FREE_LOCK:
        return f"its session is gone and {silent_looks} looks saw no heartbeat"
    if silent_looks >= settings.LOOKS_WITHOUT_BEAT:
        return f"{silent_looks} looks saw no heartbeat"
    return ""


def bury(connection: Connection, worker_id: int, heartbeat: datetime, backends: Any, because: str) -> bool:
    """Give a worker up for dead: grant it nothing more, end its sessions, announce its messages anew.

    Returns False, with nothing done, if this heartbeat is not its last one or it has stopped meanwhile.
    """
    last_seen = {"worker": worker_id, "heartbeat": heartbeat, "because": because}
    with connection.transaction():
        buried = connection.execute(statement("bury_worker"), last_seen).fetchall()
    if not buried:
        return False
    connection.execute(statement("terminate_backends"), {"backends": json.dumps(backends)})
    presence.withdraw(connection, worker_id)
    return True


def recover(connection: Connection, worker_id: int) -> int:
    """Take back what this dead worker holds; returns how many tasks that were."""
    parameters = {
        "worker": worker_id,
        "limit": settings.MAX_WORKER_LOSSES,
        "base": backoff.LOSS_BASE,
        "cap": backoff.LOSS_CAP,
    }
    with connection.transaction():
        rows = connection.execute(statement("recover"), parameters).fetchall()
        task_results.record(
            connection, [Record(task_id, worker_id) for task_id, state in rows if state in FINAL]
        )
    if rows:
        _log.warning("took %d tasks back from worker %d", len(rows), worker_id)
        wakeup.ring_on(connection)
    return len(rows)
