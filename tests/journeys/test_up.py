"""The whole platform on one command, used from outside as its users do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import pytest

from capataz.services.keepsakes import free_port
from capataz.services.launcher import wrapped
from tests.processes import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
TASKS = 2000


def environment(home):
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DATABASE", "REDIS", "CAPATAZ"))
    }
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    return {**kept, "CAPATAZ_HOME": str(home), "CAPATAZ_DEMO": "1", "PYTHONPATH": path}


class Platform:
    """``manage.py up`` in a data directory of its own."""

    def __init__(self, home):
        self.home = home
        self.log = home.parent / "up.log"

    def start(self, *options):
        self.port = free_port()
        command = [sys.executable, "manage.py", "up", "--data-dir", str(self.home), "--port", str(self.port)]
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(
                wrapped([*command, *options], signal.SIGTERM, None),
                cwd=ROOT,
                env=environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self):
        assert self.popen.poll() is None, self.log.read_text()[-5000:]
        return f"ready {self.url}" in self.log.read_text().splitlines()

    def run(self):
        return json.loads((self.home / "run.json").read_text())

    def pid(self, name):
        return next((each["pid"] for each in self.run()["processes"] if each["name"] == name), None)

    def pids(self):
        return [self.popen.pid, *(each["pid"] for each in self.run()["processes"])]

    def manage(self, *arguments):
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=environment(self.home),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return done.stdout.strip()

    def stop(self):
        family = [
            self.popen.pid,
            *(child.pid for child in psutil.Process(self.popen.pid).children(recursive=True)),
        ]
        self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(timeout=60)
        return code, family


@pytest.fixture
def home():
    # Not pytest's own folder: PostgreSQL's unprivileged user has to pass.
    with tempfile.TemporaryDirectory(prefix="capataz-up-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "home"


@pytest.fixture
def platform_up(home, eventually):
    up = Platform(home).start("--workers", "2", "--concurrency", "2,3")
    try:
        eventually(up.is_ready)
        yield up
    finally:
        if up.popen.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                up.stop()


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_platform_survives_kills_and_stops_without_a_trace(platform_up, eventually, measured):
    up = platform_up
    token = up.manage("token", "create", "--role", "operator", "--name", "test")
    client = httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    tasks = [
        {"type": "demo.record", "data": {"file": "up.log", "token": str(number), "seconds": 0.01}}
        for number in range(TASKS)
    ]
    answer = client.post("/api/v1/tasks/bulk", json={"tasks": tasks})
    assert answer.status_code == 202
    ids = answer.json()["ids"]
    assert len(ids) == TASKS

    for name in ("worker-1", "dispatcher", "web", "beat"):
        before = up.pid(name)
        killed = time.monotonic()
        os.kill(before, signal.SIGKILL)
        eventually(lambda name=name, before=before: up.pid(name) not in (None, before))
        measured(f"from the death of {name} to its successor", time.monotonic() - killed, 5)

    def waiting():
        try:
            return client.get("/api/v1/tasks", params={"status": ["pending", "inProgress"]}).json()["items"]
        except httpx.HTTPError:
            return ["the web process is being restarted"]

    eventually(lambda: not waiting(), every=0.3)
    lines = (up.home / "records" / "up.log").read_text().split("\n")
    assert {line.split()[1] for line in lines if line.startswith("end")} == set(ids)
    detail = client.get(f"/api/v1/tasks/{ids[0]}").json()
    assert detail["status"] == "completed"
    assert [each["outcome"] for each in detail["attempts"]].count("succeeded") == 1
    assert client.get("/health").json()["status"] == "normal"

    code, family = up.stop()
    assert code == 0
    assert [pid for pid in family if not is_gone(pid)] == []


def test_other_commands_and_flower_reach_the_running_platform(platform_up, eventually):
    up = platform_up
    token = up.manage("token", "create", "--role", "viewer", "--name", "test")
    client = httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    called = subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "capataz",
            "call",
            "demo.echo",
            "--kwargs",
            '{"message": "cli"}',
        ],
        cwd=ROOT,
        env=environment(up.home),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    task_id = called.stdout.strip().splitlines()[-1]
    eventually(lambda: client.get(f"/api/v1/tasks/{task_id}").json().get("status") == "completed")

    password = (up.home / "secrets" / "flower-password").read_text().strip()
    flower = httpx.Client(base_url=up.run()["flower"], auth=("capataz", password), timeout=60)

    def applied():
        with contextlib.suppress(httpx.HTTPError):
            answer = flower.post("/api/task/async-apply/demo.echo", json={"kwargs": {"message": "flower"}})
            return answer.status_code == 200 and answer.json()["task-id"]
        return None

    from_flower = eventually(applied)
    eventually(lambda: client.get(f"/api/v1/tasks/{from_flower}").json().get("status") == "completed")

    def is_shown():  # Flower asks the workers for events every few seconds, and shows what comes after that
        applied()
        with contextlib.suppress(httpx.HTTPError):
            return "demo.echo" in {each["name"] for each in flower.get("/api/tasks").json().values()}
        return False

    eventually(is_shown, every=1)


def test_data_survives_a_restart_and_a_second_start_is_refused(platform_up, eventually):
    up = platform_up
    token = up.manage("token", "create", "--role", "producer", "--name", "test")
    headers = {"Authorization": f"Bearer {token}"}
    body = {"type": "demo.echo", "data": {"message": "keep me"}, "delay": 3_600_000}
    task_id = httpx.post(f"{up.url}/api/v1/tasks", json=body, headers=headers, timeout=60).json()["id"]

    second = subprocess.run(
        [
            sys.executable,
            "manage.py",
            "up",
            "--data-dir",
            str(up.home),
            "--port",
            str(free_port()),
            "--no-flower",
        ],
        cwd=ROOT,
        env=environment(up.home),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert second.returncode != 0
    assert str(up.popen.pid) in second.stdout + second.stderr

    code, _ = up.stop()
    assert code == 0
    stopped = time.monotonic()
    again = Platform(up.home).start("--no-flower")
    try:
        eventually(again.is_ready)
        found = httpx.get(f"{again.url}/api/v1/tasks/{task_id}", headers=headers, timeout=60).json()
        assert (found["state"], found["data"]) == ("scheduled", {"message": "keep me"})
        assert time.monotonic() > stopped
    finally:
        again.stop()
