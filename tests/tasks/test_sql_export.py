"""SQL from clients runs only as a role that can do no harm."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pytest_django import Settings

from capataz.errors import Discard, InvalidSubmission
from capataz.handlers import RunningTask, find
from capataz.services.postgres import Postgres
from tasks import queries, sql_export

ROLE, OWNER = "sql_export_reader", "sql_export_owner"

Execute = Callable[[str], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL whose role capataz is a superuser, since no other may give roles what is refused here."""
    with tempfile.TemporaryDirectory(prefix="capataz-") as directory:
        home = Path(directory)
        home.chmod(0o711)
        made = Postgres(home)
        made.spec()
        made._single_user(made._binaries(), made.data, "ALTER ROLE capataz SUPERUSER;\n")
        made.start()
        made.wait_until_ready()
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def execute(server: Postgres) -> Iterator[Execute]:
    with psycopg.connect(server.url, autocommit=True) as session:
        yield session.execute


@pytest.fixture(autouse=True)
def role(execute: Execute, server: Postgres, settings: Settings, tmp_path: Path) -> Iterator[None]:
    """A role that may read one table, as the documentation says to make one."""
    settings.EXPORT_ROOT = tmp_path / "exports"
    execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'secret'; CREATE ROLE {OWNER}")
    execute("REVOKE TEMPORARY ON DATABASE capataz FROM PUBLIC; CREATE TABLE auth_user (password text)")
    execute(f"CREATE TABLE things AS SELECT generate_series(1, 3) AS n; GRANT SELECT ON things TO {ROLE}")
    execute(
        "CREATE FUNCTION sly() RETURNS int SECURITY DEFINER LANGUAGE sql"
        " AS 'INSERT INTO things VALUES (9) RETURNING n'"
    )
    settings.EXPORT_SQL_URL = make_conninfo(server.url, user=ROLE, password="secret")
    yield
    execute(f"DROP FUNCTION sly; DROP TABLE things, auth_user; DROP OWNED BY {ROLE}, {OWNER}")
    execute(f"DROP ROLE {ROLE}, {OWNER}")


def run(sql: str, destination: str = "a.csv", **data: Any) -> dict[str, Any]:
    handler = find("sql_export")
    task = RunningTask(uuid.uuid4(), "sql_export", attempt=1, starts=1)
    job = handler.load(handler.parse({"sql": sql, "destination": destination, **data}))
    result: dict[str, Any] = handler.function(task, job)
    return result


def test_one_select_is_exported(tmp_path: Path) -> None:
    assert run("SELECT n, '100%' AS p FROM things ORDER BY n;")["rows"] == 3
    assert (tmp_path / "exports/a.csv").read_text().splitlines() == [
        '"n","p"', '"1","100%"', '"2","100%"', '"3","100%"',
    ]  # fmt: skip


def test_it_is_for_admins_only() -> None:
    assert find("sql_export").role == "admin"


def test_without_the_setting_it_is_refused_at_submission(settings: Settings) -> None:
    settings.EXPORT_SQL_URL = ""
    with pytest.raises(InvalidSubmission) as refused:
        run("SELECT 1")
    [fault] = refused.value.faults
    assert fault.pointer == "data/sql" and "CAPATAZ_EXPORT_SQL_URL" in fault.detail


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; DELETE FROM things",
        "SELECT 1 AS a; SELECT 2 AS b",
        "SELECT 1) TO STDOUT; --",
        f"SET ROLE {OWNER}",
        "SET transaction_read_only = off",
        "SELECT set_config('transaction_read_only', 'off', true)",
        f"SELECT set_config('role', '{OWNER}', true)",
        "INSERT INTO things VALUES (4)",
        "WITH gone AS (DELETE FROM things RETURNING n) SELECT * FROM gone",
        "COPY things TO PROGRAM 'id'",
        "COPY (SELECT 1) TO '/tmp/x'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_export(1, '/tmp/x')",
        "SELECT password FROM auth_user",
        "SELECT * FROM pg_authid",
        "SELECT * INTO stolen FROM things",
        "CREATE TABLE x (n int)",
        "DO $$ BEGIN PERFORM 1; END $$",
        "SELECT pg_reload_conf()",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> session_user",
        "SELECT sly()",
    ],
)
def test_whatever_else_is_tried_fails_and_changes_nothing(sql: str, tmp_path: Path) -> None:
    with pytest.raises(Discard, match="failed"):
        run(sql)
    assert run("SELECT * FROM things", "b.csv")["rows"] == 3
    assert not (tmp_path / "exports/a.csv").exists()


@pytest.mark.parametrize(
    "sql", ["SELECT pg_sleep(60)", "SELECT count(*) FROM generate_series(1, 1000000000000)"]
)
def test_it_ends_by_its_timeout(sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_export, "TIMEOUT", 0.3)
    with pytest.raises(Discard, match="took longer"):
        run(sql)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"ALTER ROLE {ROLE} SUPERUSER", "is a superuser"),
        (f"ALTER ROLE {ROLE} CREATEROLE", "may create roles"),
        (f"ALTER ROLE {ROLE} CREATEDB", "may create databases"),
        (f"ALTER ROLE {ROLE} REPLICATION", "may replicate"),
        (f"ALTER ROLE {ROLE} BYPASSRLS", "bypasses row security"),
        (f"GRANT pg_read_server_files TO {ROLE}", "is a member of pg_read_server_files"),
        (f"GRANT pg_write_server_files TO {ROLE}", "is a member of pg_write_server_files"),
        (f"GRANT pg_execute_server_program TO {ROLE}", "is a member of pg_execute_server_program"),
        (f"GRANT pg_signal_backend TO {ROLE}", "is a member of pg_signal_backend"),
        (f"GRANT pg_write_all_data TO {ROLE}", "is a member of pg_write_all_data"),
        (f"GRANT INSERT ON things TO {ROLE}", "may change the table things"),
        (f"GRANT UPDATE (n) ON things TO {ROLE}", "may change the table things"),
        (f"GRANT DELETE ON things TO {ROLE}", "may change the table things"),
        (f"GRANT TRUNCATE ON things TO {ROLE}", "may change the table things"),
        (f"GRANT CREATE ON SCHEMA public TO {ROLE}", "may create things in the schema public"),
        (f"GRANT CREATE ON DATABASE capataz TO {ROLE}", "may create schemas"),
        (f"GRANT TEMPORARY ON DATABASE capataz TO {ROLE}", "may create temporary tables"),
        # By the detour of a role that it could become.
        (f"ALTER ROLE {ROLE} NOINHERIT; GRANT {OWNER} TO {ROLE}; GRANT INSERT ON things TO {OWNER}",
         "may change the table things"),
        (f"ALTER ROLE {OWNER} SUPERUSER; GRANT {OWNER} TO {ROLE}", "is a superuser"),
        (f"GRANT {OWNER} TO {ROLE}; ALTER ROLE {ROLE} SET role = {OWNER}", "is another role than"),
    ],
)  # fmt: skip
def test_a_role_that_may_do_too_much_runs_nothing(statement: str, said: str, execute: Execute) -> None:
    execute(statement)
    with pytest.raises(Discard, match="may do too much") as refused:
        run("SELECT n FROM things")
    assert said in str(refused.value) and "secret" not in str(refused.value)


def test_a_setting_that_cannot_be_read_is_not_repeated(settings: Settings) -> None:
    settings.EXPORT_SQL_URL = "postgresql//reader:secret@host/db"
    with pytest.raises(Discard, match="is not a PostgreSQL URL") as refused:
        run("SELECT 1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "statement",
    [f"ALTER ROLE {ROLE} SET temp_file_limit = 1024", f"GRANT SET ON PARAMETER temp_file_limit TO {ROLE}"],
)
def test_temporary_files_of_the_server_are_bounded(
    statement: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LARGEST_TEMPORARY", 1024)
    execute(statement)
    with pytest.raises(Discard, match="temporary files"):
        run("SELECT count(*) FROM generate_series(1, 10000000)")
