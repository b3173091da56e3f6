"""Connections to PostgreSQL for the loops that do not go through Django's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
from django.db import connection as django_connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from capataz.servers import ENGINE_SESSION, session_options

Connection = psycopg.Connection[TupleRow]


# Milliseconds that a person or a remote command waits for a row that somebody else holds.
PATIENCE = 2000


def be_impatient() -> None:
    """In the caller's transaction, which has to be Django's: wait for no lock longer than PATIENCE."""
    with django_connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {PATIENCE}")


class Session:
    """One connection of one thread, made when it is first needed and again after it was closed.

    In autocommit mode, named in pg_stat_activity. ``durable=False`` commits asynchronously: right for
    moves that a crash may undo because they are simply made again, such as releasing.
    """

    def __init__(
        self, name: str, *, durable: bool = True, on_connect: Callable[[Connection], object] | None = None
    ) -> None:
        self._name = f"capataz {name}"[:63]
        self._durable = durable
        self._on_connect = on_connect
        self._connection: Connection | None = None
        self.backend: tuple[int, str] | None = None

    def connection(self) -> Connection:
        """The connection. Raises psycopg.OperationalError if the database cannot be reached."""
        if self._connection is None or self._connection.closed:
            made = psycopg.connect(**_parameters(), autocommit=True, application_name=self._name)
            if not self._durable:
                made.execute("SET synchronous_commit = off")
            query = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            [[pid, start]] = made.execute(query).fetchall()
            self.backend = (pid, start)
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
