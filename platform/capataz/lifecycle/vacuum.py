"""Vacuum: what autovacuum has left over, and statistics of what it never looks at."""

from __future__ import annotations

from typing import LiteralString

from psycopg import errors, sql
from psycopg.errors import Diagnostic

from capataz.database import Connection, Session
from capataz.lifecycle.retention import PARTITIONED
from capataz.sql import statement

# A table is worth the work from so many dead rows on, and from this share of its rows. Autovacuum has a
# larger measure; a night is a good time to do what it would do in the middle of the next day.
DEAD_ROWS = 1000
DEAD_SHARE = 0.05
# Milliseconds to wait for a table that somebody else vacuums or alters.
PATIENCE = 2000
# Truncating the file would need the whole table for itself; the room is used again anyway.
VACUUM, ANALYZE = "VACUUM (ANALYZE, TRUNCATE false) {}", "ANALYZE {}"


def vacuum(*, dead_rows: int = DEAD_ROWS) -> dict[str, str]:
    """Vacuum the tables that are worth it; returns what was done to each, or why it was not.

    On a session of its own, since it cannot be part of a transaction. Never takes a lock that holds up those
    who read and write.
    """
    session = Session("vacuum")
    try:
        connection = session.connection()
        if session.backend is not None:  # or it would stay in a session that is lent to others
            connection.execute(f"SET lock_timeout = {PATIENCE}")
        worth_it = {"dead_rows": dead_rows, "dead_share": DEAD_SHARE}
        tables = [name for [name] in connection.execute(statement("worth_vacuuming"), worth_it)]
        done = {name: _run(connection, VACUUM, name) or "vacuumed" for name in tables}
        # Autovacuum never analyzes the parents of partitions.
        return done | {name: _run(connection, ANALYZE, name) or "analyzed" for name in PARTITIONED}
    finally:
        session.close()


def _run(connection: Connection, command: LiteralString, table: str) -> str:
    """Why the table was left out, if it was."""
    warnings: list[str] = []

    def listen(diagnostic: Diagnostic) -> None:
        # What this role may not do, PostgreSQL leaves out with a warning.
        warnings.append(diagnostic.message_primary or "")

    connection.add_notice_handler(listen)
    try:
        connection.execute(sql.SQL(command).format(sql.Identifier(table)))
    except errors.LockNotAvailable:
        return "left out: somebody else holds its lock"
    finally:
        connection.remove_notice_handler(listen)
    return f"left out: {'; '.join(warnings)}" if warnings else ""
