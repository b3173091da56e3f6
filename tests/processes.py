"""Real processes of the platform for tests: started, killed for real, and never left behind."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from django.db import connection
from psycopg.conninfo import make_conninfo

from capataz.models import Worker
from capataz.services.launcher import wrapped

ROOT = Path(__file__).resolve().parent.parent
# Seconds that a test waits for what has to happen: a shared machine may stand still for a while.
PATIENCE = 240
_names = itertools.count(1)


@dataclass(eq=False)
class Process:
    """One process of the platform."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def children(self) -> list[psutil.Process]:
        """Its living children."""
        try:
            return [child for child in psutil.Process(self.pid).children() if child.is_running()]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """As the kernel would, without a word."""
        self.signal(signal.SIGKILL)
        self.popen.wait(timeout=30)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stop(self, within: float = 60) -> int:
        """Ask it to stop; returns its exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout=within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {within} s") from None

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def worker(self) -> Worker:
        """The row of the worker that this process is."""
        return Worker.objects.filter(pid=self.pid).latest("id")


@dataclass(eq=False)
class Processes:
    """Starts processes on this test's database."""

    started: list[Process] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="capataz-logs-")))

    def start_dispatcher(self, **environment: str) -> Process:
        return self.start("dispatcher", [sys.executable, "manage.py", "dispatcher"], **environment)

    def start_worker(
        self,
        concurrency: str = "2,2",
        *,
        options: tuple[str, ...] = (),
        wait: bool = True,
        **environment: str,
    ) -> Process:
        """A worker with ``--autoscale=concurrency`` (max,min), ready to take tasks."""
        name = f"worker-{next(_names)}"
        command = [sys.executable, "-m", "celery", "-A", "capataz", "worker", "-n", f"{name}@%h"]
        command += [
            f"--autoscale={concurrency}",
            "--without-gossip",
            "--without-mingle",
            "-l",
            "INFO",
            *options,
        ]
        process = self.start(name, command, **environment)
        if wait:
            self.wait_until_ready(process)
        return process

    def wait_until_ready(self, process: Process) -> None:
        deadline = time.monotonic() + PATIENCE
        while not Worker.objects.filter(pid=process.pid, state="running", phase="running").exists():
            if not process.is_alive() or time.monotonic() > deadline:
                raise AssertionError(
                    f"{process.name} did not become ready:\n{process.log.read_text()[-5000:]}"
                )
            time.sleep(0.05)

    def start(self, name: str, command: list[str], **environment: str) -> Process:
        log = self.folder / f"{name}-{len(self.started)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                wrapped(command, signal.SIGKILL, None),  # it ends with the run, however that ends
                cwd=ROOT,
                env={**os.environ, **database_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self.started.append(process)
        return process

    def stop_all(self) -> None:
        """End everything that was started, together with its children."""
        if "COVERAGE_PROCESS_CONFIG" in os.environ:
            self._let_all_report()
        for process in self.started:
            family = process.children()
            for number in (signal.SIGCONT, signal.SIGKILL):
                process.signal(number)
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.popen.wait(timeout=30)

    def _let_all_report(self) -> None:
        # A process that is killed cannot say which lines it has run. One that has no time to stop is killed.
        for process in self.started:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while any(process.is_alive() for process in self.started) and time.monotonic() < deadline:
            time.sleep(0.02)

    def print_logs(self) -> None:
        for process in self.started:
            print(f"--- {process.name} ({process.log})\n{process.log.read_text()[-6000:]}")


def database_environment() -> dict[str, str]:
    """What a process needs to use this test's database and find the packages."""
    given = connection.settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    url = make_conninfo(**{ours: str(given[key]) for key, ours in names.items() if given[key]})
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    return {"DATABASE_URL": url, "PYTHONPATH": path}


def celery(
    *arguments: str, check: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a user gets from typing ``celery -A capataz ...``."""
    done = subprocess.run(  # noqa: PLW1510 - the caller decides what a failure means
        [sys.executable, "-m", "celery", "-A", "capataz", *arguments],
        cwd=ROOT,
        env={**os.environ, **database_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
