"""SQL from clients: only for admins, over a connection of its own, as a role that can do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from django.conf import settings
from pydantic import Field, field_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks import exports, queries

TIMEOUT = 600  # seconds
CONNECT_TIMEOUT = 10  # seconds

# What the role of the connection may do, or any role that it could become, and should not be able to.
FORBIDDEN = """
WITH roles AS (SELECT * FROM pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER')),
namespaces AS (SELECT * FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
SELECT 'is another role than ' || session_user WHERE current_user <> session_user
UNION SELECT 'is a superuser' FROM roles WHERE rolsuper
UNION SELECT 'may create roles' FROM roles WHERE rolcreaterole
UNION SELECT 'may create databases' FROM roles WHERE rolcreatedb
UNION SELECT 'may replicate' FROM roles WHERE rolreplication
UNION SELECT 'bypasses row security' FROM roles WHERE rolbypassrls
UNION SELECT 'is a member of ' || rolname FROM roles WHERE rolname IN (
    'pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program', 'pg_write_all_data',
    'pg_signal_backend'
)
UNION SELECT 'may change the table ' || min(c.oid::regclass::text)
    FROM roles r, pg_class c JOIN namespaces n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (
        has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
        OR has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE')
    )
    HAVING count(*) > 0
UNION SELECT 'may create things in the schema ' || min(nspname::text) FROM roles r, namespaces n
    WHERE has_schema_privilege(r.oid, n.oid, 'CREATE') HAVING count(*) > 0
UNION SELECT 'may create schemas' FROM roles r
    WHERE has_database_privilege(r.oid, current_database(), 'CREATE')
UNION SELECT 'may create temporary tables' FROM roles r
    WHERE has_database_privilege(r.oid, current_database(), 'TEMPORARY')
ORDER BY 1
"""


class SqlExport(exports.Destination):
    """One SELECT, and where its rows go."""

    sql: Annotated[str, Field(min_length=1, max_length=100_000)]

    @field_validator("sql")
    @classmethod
    def _is_allowed(cls, sql: str) -> str:
        if not settings.EXPORT_SQL_URL:
            raise ValueError("SQL from clients is not run here: CAPATAZ_EXPORT_SQL_URL is not set")
        return sql


@handler(
    "sql_export",
    payload=SqlExport,
    queue="files",
    role="admin",
    retry=exponential(base=10, cap=300, attempts=3),
    soft_time_limit=TIMEOUT + 60,
    time_limit=TIMEOUT + 120,
)
def export_sql(task: RunningTask, job: SqlExport) -> dict[str, Any]:
    """Write the rows of one SELECT to a file, as the role of CAPATAZ_EXPORT_SQL_URL if that is harmless."""
    with (
        _session() as session,
        queries.answering(session, job.sql, {}, name="given", timeout=TIMEOUT) as answer,
    ):
        return exports.write(task, job, answer)


@contextmanager
def _session() -> Iterator[Any]:
    """A connection of which nothing will remain. Raises Discard if its role may do too much."""
    import psycopg

    try:
        session = psycopg.connect(
            settings.EXPORT_SQL_URL, connect_timeout=CONNECT_TIMEOUT, application_name="capataz sql_export"
        )
    except psycopg.ProgrammingError:  # its text repeats what was given
        raise Discard("CAPATAZ_EXPORT_SQL_URL is not a PostgreSQL URL or DSN") from None
    try:
        found = [reason for (reason,) in session.execute(FORBIDDEN)]
        if found:
            raise Discard(f"the role of CAPATAZ_EXPORT_SQL_URL may do too much: it {', '.join(found)}")
        session.rollback()
        yield session
    finally:
        session.close()
