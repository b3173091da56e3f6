"""Connections to PostgreSQL for the loops that do not go through Django's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
from django.db import connection as django_connection
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from capataz.servers import ENGINE_SESSION, session_options

Connection = psycopg.Connection[TupleRow]
# A process of the server: its pid, which is used again, and when it started.
Backend = tuple[int, str]


# Executions after which psycopg prepares a statement; its own default.
PREPARE_AFTER = 5

# Milliseconds that a person or a remote command waits for a row that somebody else holds.
PATIENCE = 2000


def be_impatient() -> None:
    """In the caller's transaction, which has to be Django's: wait for no lock longer than PATIENCE."""
    with django_connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {PATIENCE}")


def database_now() -> datetime:
    """The time by the database's clock, which all machines share."""
    with django_connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        [moment] = cursor.fetchone()
    return moment  # type: ignore[no-any-return]


class Session:
    """One connection of one thread, made when it is first needed and again after it was closed.

    In autocommit mode, named in pg_stat_activity. ``durable=False`` commits asynchronously: right for
    moves that a crash may undo because they are simply made again, such as releasing.

    Behind a pooler a session is lent for one transaction at a time: ``backend`` is None, and nothing is set,
    prepared or locked that would outlive a transaction.
    """

    def __init__(
        self, name: str, *, durable: bool = True, on_connect: Callable[[Connection], object] | None = None
    ) -> None:
        self._name = f"capataz {name}"[:63]
        self._durable = durable
        self._on_connect = on_connect
        self._connection: Connection | None = None
        self.backend: Backend | None = None

    def connection(self) -> Connection:
        """The connection. Raises psycopg.OperationalError if the database cannot be reached."""
        if self._connection is None or self._connection.closed:
            made = psycopg.connect(**_parameters(), autocommit=True, application_name=self._name)
            made.prepare_threshold = None  # until it is known that the session is ours
            self.backend = own_backend(made)
            if self.backend is not None:
                made.prepare_threshold = PREPARE_AFTER
                if not self._durable:
                    made.execute("SET synchronous_commit = off")
            if self._on_connect is not None:
                self._on_connect(made)
            self._connection = made
        return self._connection

    def close(self) -> None:
        """Drop the connection; the next use makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def socket(self) -> int | None:
        """The file descriptor, which a forked child has to close; None without a connection."""
        connection = self._connection
        return None if connection is None or connection.closed else connection.fileno()


def own_backend(connection: Connection) -> Backend | None:
    """The process of the server that is this connection's alone; None behind a pooler.

    Whoever lends sessions to many clients has to answer their requests to cancel, and so announces keys of
    its own when a client connects. PostgreSQL announces the pid of the session's process.
    """
    query = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    row: Backend | None = connection.execute(query).fetchone()
    return row if row is not None and row[0] == connection.info.backend_pid else None


def keep_nothing_in_a_pooled_session(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Behind a pooler, have Django read large results without cursors: those outlive a transaction."""
    if own_backend(connection.connection) is None:
        connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = True


def driver() -> Connection:
    """The psycopg connection under Django's, so that a statement joins the caller's transaction."""
    django_connection.ensure_connection()
    raw: Connection = django_connection.connection
    return raw


def conninfo() -> str:
    """Where Django's database is, with the password, as libpq understands it."""
    return make_conninfo(**{name: value for name, value in _parameters().items() if name != "options"})


def _parameters() -> dict[str, Any]:
    given = django_connection.settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    parameters: dict[str, Any] = {ours: given[key] for key, ours in names.items() if given[key]}
    parameters.update(given["OPTIONS"], options=session_options(ENGINE_SESSION))
    return parameters
