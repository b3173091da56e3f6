"""Circuits around calls to other sides, in handlers and in web code, shared by all processes.

The row in PostgreSQL is the truth, its clock the only one. A call that meets a closed circuit costs one
statement; only failures, and the calls of a circuit that is not closed, write. If PostgreSQL cannot be asked,
calls go through.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import TypeVar

import psycopg

from capataz.database import Connection, Session
from capataz.errors import CircuitOpen
from capataz.policy import Circuit
from capataz.sql import statement

CLOSED, OPEN, HALF_OPEN = "CLOSED", "OPEN", "HALF_OPEN"
EVENTS = {CLOSED: "circuit.closed", OPEN: "circuit.opened", HALF_OPEN: "circuit.halfOpen"}

# Seconds after which a call asks again that has met a circuit which an operator has opened, or whose probes
# are under way.
FORCED_WAIT, PROBE_WAIT = 60.0, 1.0
# Milliseconds that a call waits for a circuit's row, before it goes through.
PATIENCE = 1000
# Seconds for which PostgreSQL is not asked again after it could not be reached.
AWAY = 1.0
LONGEST_NAME = 255

Value = TypeVar("Value")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """Where a circuit stands, and every move it can make. The moves change nothing where it is forced."""

    name: str
    state: str = CLOSED
    forced: bool = False
    failures: int = 0
    successes: int = 0
    openings: int = 0
    leases: list[datetime] = field(default_factory=list)
    changed_at: datetime | None = None
    retry_at: datetime | None = None
    last_failure_at: datetime | None = None

    def ripen(self, now: datetime) -> Standing:
        """Half open, if it has been open for long enough."""
        if self.forced or self.state != OPEN or self.retry_at is None or now < self.retry_at:
            return self
        return replace(self, state=HALF_OPEN, successes=0, leases=[], changed_at=now, retry_at=None)

    def lend(self, policy: Circuit, now: datetime) -> Standing | None:
        """With one more probe under way, or None if there are enough. Its right ends by itself, so that a
        process that dies with it holds nobody up."""
        alive = [lease for lease in self.leases if lease > now]
        if len(alive) >= policy.probes:
            return None
        return replace(self, leases=[*alive, now + timedelta(seconds=policy.timeout)])

    def judge(self, policy: Circuit, *, failed: bool, started: datetime, now: datetime) -> Standing:
        """After one call. One that began before the last change says nothing about what came after it."""
        if self.forced or self.state == OPEN or (self.changed_at is not None and started < self.changed_at):
            return self
        if failed:
            return self._after_failure(policy, now)
        if self.state == CLOSED:
            return replace(self, failures=0)
        counted = replace(self, successes=self.successes + 1, leases=self.leases[1:])
        return counted.close(now) if counted.successes >= policy.successes else counted

    def _after_failure(self, policy: Circuit, now: datetime) -> Standing:
        counted = replace(self, failures=self.failures + 1, last_failure_at=now)
        if self.state == CLOSED and counted.failures < policy.failures:
            return counted
        openings = self.openings + 1
        rest = timedelta(seconds=policy.rest(openings))
        return replace(
            counted,
            state=OPEN,
            openings=openings,
            successes=0,
            leases=[],
            changed_at=now,
            retry_at=now + rest,
        )

    def close(self, now: datetime) -> Standing:
        """Closed, with nothing counted."""
        return Standing(self.name, changed_at=now, last_failure_at=self.last_failure_at)


COLUMNS = tuple(each.name for each in fields(Standing))


def lock(connection: Connection, name: str) -> tuple[Standing, datetime]:
    """The circuit, made if it was unknown, and the time: the caller's alone until its transaction ends."""
    connection.execute("INSERT INTO capataz_circuit (name) VALUES (%s) ON CONFLICT DO NOTHING", [name])
    query = f"SELECT {', '.join(COLUMNS)}, clock_timestamp() FROM capataz_circuit WHERE name = %s FOR UPDATE"  # noqa: S608
    [row] = connection.execute(query, [name]).fetchall()
    return Standing(*row[:-1]), row[-1]


def store(connection: Connection, was: Standing, becomes: Standing, **why: str) -> None:
    """Write a change of a circuit that the caller has locked, with its event if the state is another."""
    if becomes == was:
        return
    detail = {"oldState": was.state, "newState": becomes.state, "failures": becomes.failures, **why}
    values = {name: getattr(becomes, name) for name in COLUMNS}
    event = EVENTS[becomes.state] if becomes.state != was.state or becomes.forced != was.forced else None
    connection.execute(
        statement("store_circuit"),
        {**values, "was": was.state, "event": event, "detail": json.dumps(detail)},
    )


@contextmanager
def circuit(name: str, policy: Circuit | None = None) -> Iterator[None]:
    """A context for a call to the other side of this name, such as a host.

    Raises CircuitOpen on entering where the circuit is open, and ValueError for a name that cannot be one.
    """
    if not 1 <= len(name) <= LONGEST_NAME or name.startswith("type:") or not name.isprintable():
        raise ValueError(
            f"a circuit's name is 1 to {LONGEST_NAME} printable characters, not beginning with type:"
        )
    policy = policy or Circuit()
    is_clean = _enter(name, policy)
    began = time.monotonic()
    try:
        yield
    except BaseException as error:
        if _is_failure(error, policy):
            _report(name, policy, failed=True, seconds=time.monotonic() - began)
        raise
    seconds = time.monotonic() - began
    if seconds > policy.timeout or not is_clean:
        _report(name, policy, failed=seconds > policy.timeout, seconds=seconds)


def call(name: str, function: Callable[[], Value], policy: Circuit | None = None) -> Value:
    """What ``function`` returns, called inside of ``circuit``."""
    with circuit(name, policy):
        return function()


def disconnect() -> None:
    """Close this process's connection; the next call makes a new one."""
    global _session
    with _lock:
        if _session is not None:
            _session.close()
        _session = None


def _is_failure(error: BaseException, policy: Circuit) -> bool:
    return isinstance(error, Exception) and not isinstance(error, (*policy.ignore, CircuitOpen))


def _enter(name: str, policy: Circuit) -> bool:
    """Whether nothing speaks against the call, so that its success need not be told."""

    def ask(connection: Connection) -> bool:
        query = "SELECT state, failures, forced FROM capataz_circuit WHERE name = %s"
        rows = connection.execute(query, [name]).fetchall()
        if not rows or rows[0][0] == CLOSED:
            return not rows or rows[0][1] == 0 or rows[0][2]
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = {PATIENCE}")
            was, now = lock(connection, name)
            becomes = was.ripen(now)
            if becomes.state == OPEN:
                wait = FORCED_WAIT if becomes.retry_at is None else (becomes.retry_at - now).total_seconds()
                raise CircuitOpen(name, wait)
            if becomes.state == HALF_OPEN:
                lent = becomes.lend(policy, now)
                if lent is None:
                    raise CircuitOpen(name, PROBE_WAIT)
                becomes = lent
            store(connection, was, becomes)
        return False

    return _asked(ask, otherwise=True)


def _report(name: str, policy: Circuit, *, failed: bool, seconds: float) -> None:
    def tell(connection: Connection) -> None:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = {PATIENCE}")
            was, now = lock(connection, name)
            started = now - timedelta(seconds=seconds)
            store(connection, was, was.judge(policy, failed=failed, started=started, now=now))

    _asked(tell, otherwise=None)


# This process's own connection: a count must not be undone with the caller's transaction, nor its row be
# locked until that ends.
_session: Session | None = None
_owner = 0
_away_until = 0.0
_lock = threading.Lock()


def _asked(question: Callable[[Connection], Value], *, otherwise: Value) -> Value:
    global _session, _owner, _away_until
    with _lock:
        if time.monotonic() < _away_until:
            return otherwise
        if _owner != os.getpid():  # a child must not speak through its parent's connection
            _session, _owner = None, os.getpid()
        _session = _session or Session("circuits", durable=False)
        try:
            return question(_session.connection())
        except psycopg.errors.LockNotAvailable:
            return otherwise
        except psycopg.Error as error:
            _log.warning("circuits cannot be asked, calls go through: %s", type(error).__name__)
            _session.close()
            _away_until = time.monotonic() + AWAY
            return otherwise
