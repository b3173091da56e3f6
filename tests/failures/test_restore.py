"""After a restore, everything that was accepted before the backup ends as it should."""

import os
import subprocess
import sys

import psycopg
import pytest
import redis
from celery import current_app
from django.conf import settings
from django.db import connection

from capataz.database import conninfo
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests.processes import PATIENCE, ROOT, database_environment
from tests.workload import notes

DATABASE = "capataz_restored"


@pytest.fixture
def elsewhere():
    """An empty database and an empty Redis, as the environment of a process."""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {DATABASE}")
    url = settings.REDIS_URL.removesuffix("/0") + "/1"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    yield {"DATABASE_URL": psycopg.conninfo.make_conninfo(conninfo(), dbname=DATABASE), "REDIS_URL": url}
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def manage(*words, **environment):
    return subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=ROOT,
        env={**os.environ, **database_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_what_was_queued_or_running_at_the_backup_is_done_after_the_restore(
    platform, elsewhere, records, eventually, tmp_path, monkeypatch
):
    monkeypatch.setenv("CAPATAZ_BACKUP_DIR", str(tmp_path))
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    gate = tmp_path / "gate"
    done = submit("demo.echo", {"message": "done"})
    eventually(lambda: Task.objects.get(pk=done.pk).state == "succeeded")
    running = submit("testing.exclusive", {"file": "restored-handler", "gate": str(gate)})
    eventually(lambda: Task.objects.get(pk=running.pk).state == "running")
    records.submit(5)
    for _ in range(3):  # one of them waits in the worker, unacknowledged, the others in their list
        current_app.send_task("tests.workload.plain_record", args=["restored-plain", 0], queue="default")
    made = manage("backup")
    assert made.returncode == 0, made.stderr
    lost = submit("demo.echo", {"message": "after the backup"})
    for process in platform.started:
        process.kill()

    restored = manage("restore", "latest", **elsewhere)
    assert restored.returncode == 0, restored.stderr
    assert "What to do next" in restored.stdout
    gate.touch()
    platform.start("dispatcher", [sys.executable, "manage.py", "dispatcher"], **elsewhere)
    platform.start_worker("2,2", wait=False, CAPATAZ_VISIBILITY_TIMEOUT_SECONDS="5", **elsewhere)

    def rows(query):
        with psycopg.connect(elsewhere["DATABASE_URL"]) as reader:
            return reader.execute(query).fetchall()

    def states():
        return dict(rows("SELECT id, state FROM capataz_task"))

    expected = dict.fromkeys([done.pk, running.pk, *records.ids], "succeeded")
    eventually(lambda: states() == expected)
    assert lost.pk not in states()
    eventually(lambda: notes("restored-plain").count("end") >= 3)
    attempts = rows(
        f"SELECT outcome, worker_id FROM capataz_attempt WHERE task_id = '{running.pk}' ORDER BY id"
    )
    assert [outcome for outcome, _ in attempts] == ["lost", "succeeded"]
    assert attempts[0][1] == worker.worker().pk
    assert rows(f"SELECT count(*) FROM capataz_attempt WHERE task_id = '{done.pk}'") == [(1,)]
