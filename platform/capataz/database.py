"""Connections to PostgreSQL for the loops that do not go through Django's."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import connection as django_connection
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]


def connect(name: str, *, durable: bool = True) -> Connection:
    """A new connection in autocommit mode, named ``name`` in pg_stat_activity.

    ``durable=False`` commits asynchronously: right for moves that a crash may undo because they are
    simply made again, such as releasing.

    Raises psycopg.OperationalError if the database cannot be reached.
    """
    connection = psycopg.connect(**_parameters(), autocommit=True, application_name=f"capataz {name}"[:63])
    if not durable:
        connection.execute("SET synchronous_commit = off")
    return connection


def driver() -> Connection:
    """The psycopg connection under Django's, so that a statement joins the caller's transaction."""
    django_connection.ensure_connection()
    raw: Connection = django_connection.connection
    return raw


def _parameters() -> dict[str, Any]:
    given = django_connection.settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    basics = {ours: given[key] for key, ours in names.items() if given[key]}
    return basics | given["OPTIONS"]
