"""Behind a pooler in transaction mode nothing that a session keeps can be relied on."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from psycopg.conninfo import make_conninfo

from capataz.api import health
from capataz.database import Session, own_backend
from capataz.lifecycle import presence
from capataz.lifecycle.dispatch import Dispatcher
from capataz.lifecycle.presence import LOCK_CLASS
from capataz.lifecycle.recovery import Recovery, bury
from capataz.lifecycle.submission import submit
from capataz.models import Task, Worker
from capataz.services import backup
from capataz.services.errors import BackupFailed
from tests.lifecycle.stage import StagedWorker, now, tasks
from tests.pooler import Pooler
from tests.workload import notes

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
# Our own always runs; where pgbouncer is installed it has to be as good.
POOLERS = ["ours", *(["pgbouncer"] if PGBOUNCER else [])]


@dataclass
class Behind:
    """Where the pooler of this test listens, and how a process gets there."""

    port: int

    def environment(self) -> dict[str, str]:
        given = connection.settings_dict
        url = make_conninfo(
            host="127.0.0.1",
            port=self.port,
            dbname=given["NAME"],
            user=given["USER"],
            password=given["PASSWORD"],
        )
        return {"DATABASE_URL": url}


@pytest.fixture(params=POOLERS)
def pooler(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[Behind]:
    given = connection.settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    there = {ours: str(given[key]) for key, ours in names.items()}
    if request.param == "ours":
        pooler = Pooler(make_conninfo(**there))
        yield Behind(pooler.port)
        pooler.close()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="capataz-pgbouncer-"))
    folder.chmod(0o755)
    database = " ".join(f"{name}={value}" for name, value in there.items() if name != "dbname")
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{there['dbname']} = {database} dbname={there['dbname']}"
        " connect_query='SET lock_timeout = 5000'\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\nserver_round_robin = 1\ndefault_pool_size = 7\n"
        "ignore_startup_parameters = options\n"
    )
    nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None  # it refuses to run as root
    process = subprocess.Popen([str(PGBOUNCER), "-q", str(folder / "pgbouncer.ini")], user=nobody)
    try:
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield Behind(port)
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture
def pooled(pooler: Behind) -> Iterator[Behind]:
    """The sessions that are made from here on lead through the pooler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", str(pooler.port))
        patch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", False)
        yield pooler
        connection.close()


@pytest.fixture
def watching(transactional_db: None) -> Iterator[Recovery]:
    """Recovery with a session of its own: what it asks must not depend on its way to PostgreSQL."""
    made = Recovery()
    made._session.connection()
    yield made
    made._session.close()


@pytest.fixture
def session(transactional_db: None) -> Iterator[psycopg.Connection]:
    own = Session("test")
    yield own.connection()
    own.close()


def look(watching: Recovery, times: int) -> None:
    for _ in range(times):
        watching.look()


def advisory_locks(session: psycopg.Connection) -> list[Any]:
    query = "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s"
    return [objid for [objid] in session.execute(query, [LOCK_CLASS])]


# Sessions.


def test_a_session_of_ones_own_is_known_from_one_that_is_lent(
    session: psycopg.Connection, pooled: Behind
) -> None:
    [[pid]] = session.execute("SELECT pg_backend_pid()").fetchall()
    assert own_backend(session)[0] == pid  # type: ignore[index]
    lent = Session("lent")
    lent.connection()
    assert lent.backend is None
    lent.close()


def test_nothing_outlives_a_transaction_in_a_session_that_is_lent(
    session: psycopg.Connection, pooled: Behind
) -> None:
    """Whoever gets the session next would be surprised, or lose what it was told is stored."""
    dispatcher, worker = Dispatcher(), StagedWorker()
    try:
        for _ in range(20):
            dispatcher.turn()
            worker.beat()
        assert worker.row().backends == [] and advisory_locks(session) == []
        lent = Session("lent")
        for _ in range(20):
            query = """
                SELECT current_setting('synchronous_commit'),
                       (SELECT count(*) FROM pg_prepared_statements),
                       (SELECT count(*) FROM pg_listening_channels())
            """
            assert lent.connection().execute(query).fetchall() == [("on", 0, 0)]
        lent.close()
    finally:
        dispatcher._session.close()
        worker.die()


def test_django_uses_no_cursor_that_would_outlive_a_transaction(pooler: Behind) -> None:
    lent = connection.copy("lent")
    lent.settings_dict["PORT"] = str(pooler.port)
    try:
        lent.ensure_connection()
        assert lent.settings_dict["DISABLE_SERVER_SIDE_CURSORS"]
        assert not connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
    finally:
        lent.close()


# Death.


def test_a_worker_without_a_session_of_its_own_dies_by_silence_alone(
    pooled: Behind, watching: Recovery
) -> None:
    worker = StagedWorker()
    [task] = tasks(1)
    worker.run(task)
    look(watching, settings.LOOKS_WITHOUT_BEAT)  # the first look has nothing to compare with
    assert worker.row().state == "running"
    worker.beat()
    look(watching, settings.LOOKS_WITHOUT_BEAT)
    assert worker.row().state == "running"
    worker.die()
    look(watching, 1)
    assert worker.row().state == "lost"
    assert now(task).state == "queued"


def test_a_lock_that_leaked_stops_no_recovery_and_robs_nobody(
    pooled: Behind, watching: Recovery, session: psycopg.Connection
) -> None:
    dead, living = StagedWorker(), StagedWorker()
    [lost], [kept] = tasks(1), tasks(1)
    dead.run(lost)
    living.run(kept)
    for worker in (dead, living):
        session.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, worker.id])
    dead.die()
    for _ in range(1 + settings.LOOKS_WITHOUT_BEAT):
        assert living.beat()
        watching.look()
    assert (dead.row().state, living.row().state) == ("lost", "running")
    assert (now(lost).state, now(kept).state) == ("queued", "running")
    living.die()


def test_the_burial_of_a_worker_behind_a_pooler_ends_nobodys_session(
    pooled: Behind, session: psycopg.Connection
) -> None:
    """The pooler has lent it to somebody else by now."""
    worker, neighbour = StagedWorker(), Session("neighbour")
    pids = {neighbour.connection().execute("SELECT pg_backend_pid()").fetchall()[0][0] for _ in range(30)}
    row = worker.row()
    assert bury(session, worker.id, row.heartbeat_at, row.backends, "test")
    living = {pid for [pid] in session.execute("SELECT pid FROM pg_stat_activity")}
    assert pids <= living
    neighbour.close()
    worker.die()


def test_a_session_that_postgresql_takes_for_alive_does_not_hold_its_worker_up(
    transactional_db: None,
) -> None:
    """A worker that was cut off for a moment connects anew before PostgreSQL has missed it."""
    worker, again = StagedWorker(), Session("again")
    presence.hold_lock(again.connection(), worker.id, left=worker.session.backend)
    assert worker.id in advisory_locks(again.connection())
    with pytest.raises(psycopg.OperationalError):
        worker.connection.execute("SELECT 1")
    again.close()


# Everything together.


def test_everything_behind_a_pooler_loses_nothing_when_a_worker_is_killed(
    platform: Any, pooler: Behind, records: Any, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    behind = pooler.environment()
    platform.start_dispatcher(**behind, CAPATAZ_LOOKS_WITHOUT_BEAT="6")
    workers = [platform.start_worker("2,2", wait=False, **behind) for _ in range(2)]
    for worker in workers:
        platform.wait_until_ready(worker)
    gate, file = tmp_path / "gate", f"pooled-{time.time_ns()}.log"
    task = submit("testing.gate", {"file": file, "gate": str(gate)})
    records.submit(60, seconds=0.02)
    eventually(lambda: Task.objects.get(pk=task.pk).state == "running")
    holder = Task.objects.get(pk=task.pk).worker_id
    killed, healthy = sorted(workers, key=lambda worker: worker.worker().pk != holder)
    killed.kill()
    eventually(lambda: len(notes(file)) == 2)
    gate.touch()
    eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")
    eventually(records.all_succeeded)
    records.check()
    assert Worker.objects.get(pid=killed.pid).state == "lost"
    assert Worker.objects.get(pid=healthy.pid).state == "running"
    assert healthy.worker().backends == []


def test_health_behind_a_pooler_sees_the_dispatcher(
    platform: Any, pooled: Behind, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_session", Session("health"))
    client = Client()

    def dispatchers() -> Any:
        return json.loads(client.get("/health").content)["checks"]["dispatcher"]["alive"]

    try:
        assert dispatchers() == 0
        dispatcher = platform.start_dispatcher()
        eventually(lambda: dispatchers() == 1)
        dispatcher.kill()
        eventually(lambda: dispatchers() == 0)
    finally:
        done = threading.Event()
        health._database._thread.submit(lambda: (health._session.close(), done.set()))  # type: ignore[union-attr]
        done.wait(30)


def test_a_backup_is_not_made_through_a_pooler(pooled: Behind, tmp_path: Path, settings: Any) -> None:
    """pg_dump would leave an empty search_path in sessions that serve others."""
    settings.BACKUP_DIR = tmp_path
    with pytest.raises(BackupFailed, match="straight to PostgreSQL"):
        backup.back_up()
    assert not list(tmp_path.glob("2*"))
