"""Presence: how a worker shows that it lives, so that others know when it has died.

While a worker lives, its session holds an advisory lock on its identity. A free lock and a silent
heartbeat together mean death within seconds; a silent heartbeat alone needs more patience, because a
network that is slow keeps the lock's session open. Behind a pooler no session is the worker's own: it takes
no lock and records no backend, and only its silence counts.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from capataz.database import Backend, Connection, own_backend
from capataz.sql import statement

# The first half of every worker's advisory lock; the second is its id.
LOCK_CLASS = 0x43505A57


@dataclass
class Sign:
    """What rides on a heartbeat. ``loop_lag`` is how many seconds late the event loop is; ``quiet`` for how
    many an idle worker has heard of nothing."""

    state: str = "running"
    phase: str = "connecting"
    processes: int = 0
    max_concurrency: int = 0
    queues: list[str] = field(default_factory=list)
    claimed: int = 0
    running: int = 0
    cpu_percent: float = 0.0
    ram_mb: float = 0.0
    loop_lag: float = 0.0
    quiet: float = 0.0
    timings: dict[str, Any] = field(default_factory=dict)
    backends: list[Any] = field(default_factory=list)


def register(
    connection: Connection,
    *,
    name: str,
    host: str,
    pid: int,
    queues: list[str],
    types: list[str],
    max_concurrency: int,
) -> int:
    """A new identity for this worker, with its lock taken in this session; returns the identity."""
    about = {
        "name": name,
        "host": host,
        "pid": pid,
        "queues": queues,
        "types": types,
        "max_concurrency": max_concurrency,
        "backends": json.dumps([backend] if (backend := own_backend(connection)) else []),
    }
    [(worker_id,)] = connection.execute(statement("register_worker"), about).fetchall()
    hold_lock(connection, worker_id)
    return int(worker_id)


def hold_lock(connection: Connection, worker_id: int, left: Backend | None = None) -> None:
    """Take the lock of this identity for as long as the session lives; waits out a look of recovery.

    ``left`` is the session that this worker has lost: PostgreSQL may not have noticed, and it would hold
    the lock until then, and this worker up.
    Behind a pooler it would stay in a session that is lent to others, so that none is taken.
    """
    if left is not None:
        connection.execute(statement("terminate_backends"), {"backends": json.dumps([left])})
    if own_backend(connection) is not None:
        connection.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, worker_id])


def beat(connection: Connection, worker_id: int, sign: Sign) -> bool:
    """Give a sign of life. False if this identity has been given up for dead: it must stop its runs."""
    columns = {
        **sign.__dict__,
        "worker": worker_id,
        "timings": json.dumps(sign.timings),
        "backends": json.dumps(sign.backends),
    }
    return connection.execute(statement("beat"), columns).rowcount == 1


def is_deaf(connection: Connection, worker_id: int, seconds: float) -> bool:
    """Whether a worker that has been idle for ``seconds`` should have heard of a task by now."""
    idle = {"worker": worker_id, "seconds": seconds}
    [[deaf]] = connection.execute(statement("is_deaf"), idle).fetchall()
    return bool(deaf)


def tell(connection: Connection, worker_id: int, kind: str, detail: dict[str, Any]) -> None:
    """Add an event about this worker."""
    connection.execute(
        "INSERT INTO capataz_event (at, kind, worker_id, subject, detail)"
        " SELECT now(), %s, id, name, %s FROM capataz_worker WHERE id = %s",
        [kind, json.dumps(detail), worker_id],
    )


def unregister(connection: Connection, worker_id: int) -> None:
    """Say that this worker stops, on purpose."""
    connection.execute(statement("unregister_worker"), {"worker": worker_id})
    withdraw(connection, worker_id)


def withdraw(connection: Connection, worker_id: int) -> None:
    """Have every unclaimed task of this worker's queues announced anew: it has ended or has lost its
    connection, and may have taken messages out of Redis that it never saw."""
    connection.execute(statement("withdraw_queues_of"), {"worker": worker_id})


def withdraw_unknown(connection: Connection, ids: list[uuid.UUID], known: list[str]) -> None:
    """Have these tasks announced anew, except those of a known type: a worker that does not know their type
    has taken their message."""
    connection.execute(statement("withdraw_unknown"), {"ids": ids, "known": known})
