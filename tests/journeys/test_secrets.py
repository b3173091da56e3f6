"""No secret of an installation is ever printed: not by Celery's commands, not in a log, not in a refusal."""

import os
import subprocess
import sys
import uuid
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import connection
from psycopg.conninfo import make_conninfo

from tests.processes import ROOT, celery, database_environment

MARK = "canary"
GIVEN = {
    "SECRET_KEY": f"{MARK}-key-{uuid.uuid4().hex}",
    "EMAIL_USER": "postmaster",
    "EMAIL_PASSWORD": f"{MARK}-mail-{uuid.uuid4().hex}",
}


@pytest.fixture
def says_nothing(transactional_db):
    """Checks that a text has none of the secrets: those of this run's servers, and those made up here."""
    server_passwords = [urlsplit(settings.REDIS_URL).password, connection.settings_dict["PASSWORD"]]
    assert all(server_passwords)  # else these tests would prove nothing

    def check(text, about=""):
        for secret in [MARK, *server_passwords]:
            assert secret not in text, about

    return check


def test_celery_prints_no_secret(platform, says_nothing, eventually):
    worker = platform.start_worker("1,1", options=("-l", "DEBUG"), **GIVEN)
    printed = [celery("report", environment=GIVEN)]
    for command in ("conf", "report", "stats", "active_queues", "registered"):
        printed.append(celery("inspect", command, environment=GIVEN))
        printed.append(celery("inspect", command, "--json", environment=GIVEN))
    printed.append(celery("status", environment=GIVEN))
    for done in printed:
        says_nothing(done.stdout + done.stderr, done.args)
    assert "broker_url" in printed[0].stdout
    assert "://:**@" in worker.log.read_text()  # the banner
    worker.stop()
    says_nothing(worker.log.read_text())


COMMANDS = {
    "dispatcher": ["manage.py", "dispatcher"],
    "worker": ["-m", "celery", "-A", "capataz", "worker", "-c", "1", "-l", "DEBUG"],
    "beat": ["-m", "celery", "-A", "capataz", "beat", "--pidfile=", "-l", "DEBUG"],
    "flower": ["-m", "celery", "-A", "capataz", "flower", "--address=127.0.0.1", "--port=0", "-l", "DEBUG"],
    "web": ["-m", "gunicorn", "capataz.wsgi", "--bind", "127.0.0.1:0", "--no-control-socket"],
}
# What each says once it has missed the server.
MISSES = (
    "refused",
    "no database",
    "cannot register",
    "Redis cannot be used",
    "no connection",
    "waits for",
)


def elsewhere(server, *, port=None, password=None):
    """The address of one of the two servers, with another port or password."""
    if server == "postgres":
        changed = {"port": port, "password": password}
        url = database_environment()["DATABASE_URL"]
        return {"DATABASE_URL": make_conninfo(url, **{key: value for key, value in changed.items() if value})}
    found = urlsplit(settings.REDIS_URL)
    login = password or found.password
    return {"REDIS_URL": f"redis://:{login}@{found.hostname}:{port or found.port}{found.path}"}


@pytest.mark.parametrize("server", ["redis", "postgres"])
def test_no_log_has_a_secret_when_a_server_cannot_be_reached(platform, says_nothing, eventually, server):
    nobody_listens = elsewhere(server, port="1")
    environment = {**GIVEN, **nobody_listens, "LOG_LEVEL": "debug", "PYTHONUNBUFFERED": "1"}
    missing = {"worker"}
    missing |= {"dispatcher", "beat"} if server == "postgres" else {"dispatcher", "flower"}
    processes = {
        name: platform.start(name, [sys.executable, *command], **environment)
        for name, command in COMMANDS.items()
    }
    for name in missing:
        log = processes[name].log
        eventually(lambda log=log: any(words in log.read_text() for words in MISSES))
    for command in (["status"], ["inspect", "ping"], ["purge", "-f"], ["call", "demo.echo"], ["report"]):
        done = celery(*command, check=False, environment=environment)
        says_nothing(done.stdout + done.stderr, command)
    for name, process in processes.items():
        process.stop(within=90)
        says_nothing(process.log.read_text(), name)


@pytest.mark.parametrize("server", ["redis", "postgres"])
def test_no_log_has_a_secret_when_a_password_is_wrong(platform, says_nothing, eventually, server):
    wrong = elsewhere(server, password=f"{MARK}-wrong")
    worker = platform.start("worker", [sys.executable, *COMMANDS["worker"]], **GIVEN, **wrong)
    says = "invalid username-password" if server == "redis" else "password authentication failed"
    eventually(lambda: says in worker.log.read_text())
    worker.stop()
    says_nothing(worker.log.read_text())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", f"redis://:{MARK}/x@127.0.0.1:6379/0"),
        ("REDIS_URL", f"redis://:1{MARK}#x@127.0.0.1:6379/0"),
        ("REDIS_URL", f"redis://127.0.0.1:6379/0?password={MARK}"),
        ("REDIS_URL", f"redis://:12/{MARK}@127.0.0.1:6379/0"),
        ("REDIS_URL", f"{MARK}@127.0.0.1"),
        ("DATABASE_URL", f"postgresql://capataz:{MARK}/x@127.0.0.1/capataz"),
        ("DATABASE_URL", f"postgresql://capataz:12/{MARK}@127.0.0.1/capataz"),
        ("DATABASE_URL", f"postgresql://capataz:{MARK}%zz@127.0.0.1/capataz"),
        ("DATABASE_URL", f"host=127.0.0.1 password=x {MARK}"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_being_printed(name, value):
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "Capataz cannot start: " in done.stderr
    assert name in done.stderr
    assert MARK not in done.stdout + done.stderr
