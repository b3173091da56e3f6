"""The platform under test: one that is started for the run, or one that runs already."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from capataz import home
from capataz.home import REPOSITORY, Run
from capataz.servers import PARTS

READY_WITHIN = 300  # seconds
STOP_WITHIN = 60
POSTGRES_DISK, REDIS_DISK = 1500, 100  # MiB, of a disk that can be filled


class ChaosError(Exception):
    """The run cannot go on; the text says why."""


@dataclass
class Target:
    """A running platform, seen from outside. ``disks`` names the servers whose disk can be filled."""

    home: Path
    disks: dict[str, Path] = field(default_factory=dict)

    def run(self) -> Run:
        """What runs now. Raises ChaosError if the platform has ended."""
        run = home.running(self.home)
        if run is None:
            raise ChaosError(f"no platform runs in {self.home}")
        return run

    def pid(self, name: str) -> int:
        """The process of this name. Raises ChaosError if there is none."""
        for process in self.run().processes:
            if process.name == name:
                return process.pid
        raise ChaosError(f"the platform has no process {name}")

    def workers(self) -> list[int]:
        """The pids of the workers' parents."""
        return [process.pid for process in self.run().processes if process.name.startswith("worker-")]

    def database(self, **options: Any) -> psycopg.Connection[Any]:
        """A session of our own."""
        return psycopg.connect(
            self.run().database_url, autocommit=True, application_name="chaos", connect_timeout=5, **options
        )

    def redis(self) -> redis.Redis:
        """A client of our own."""
        return redis.Redis.from_url(self.run().redis_url, socket_timeout=60)

    def environment(self) -> dict[str, str]:
        """For commands that are to reach this platform."""
        return {**os.environ, "CAPATAZ_HOME": str(self.home)}

    def token(self) -> str:
        """A new operator's token."""
        create = [sys.executable, str(REPOSITORY / "manage.py"), "token", "create"]
        done = subprocess.run(
            [*create, "--role", "operator", "--name", f"chaos-{os.getpid()}"],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise ChaosError(f"no token could be made: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()


def children_of(pid: int) -> list[int]:
    """The living children of this process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [
            child.pid for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE
        ]
    return []


def wait_until(condition: Callable[[], Any], within: float, every: float = 0.05) -> bool:
    """Whether this came true within so many seconds; an error of a server that is away is a no."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with contextlib.suppress(psycopg.Error, redis.RedisError, OSError, ChaosError):
            if condition():
                return True
        time.sleep(every)
    return False


def running_platform(place: Path) -> Target:
    """One that somebody else has started, with our handlers. Raises ChaosError if there is none."""
    target = Target(place)
    target.run()
    return target


@contextlib.contextmanager
def own_platform(
    command: Callable[[Path], list[str]], environment: dict[str, str], *, keep: bool, log: Path
) -> Iterator[Target]:
    """One in a directory of its own, removed afterwards unless it shall be kept."""
    place = Path(tempfile.mkdtemp(prefix="capataz-chaos-"))
    place.chmod(0o711)  # PostgreSQL's user has to walk through it
    disks = _small_disks(place)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(place),
            cwd=REPOSITORY,
            env={**_environment(place), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        ready = wait_until(lambda: process.poll() is not None or home.running(place), READY_WITHIN)
        if not ready or process.poll() is not None:
            raise ChaosError(f"the platform did not become ready; see {log}")
        yield Target(place, disks)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
        for disk in disks.values():
            subprocess.run(["umount", "-l", str(disk)], check=False)
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _small_disks(place: Path) -> dict[str, Path]:
    """File systems of their own for the servers, where we may mount any."""
    disks = {}
    for name, size in (("postgres", POSTGRES_DISK), ("redis", REDIS_DISK)):
        disk = place / name
        disk.mkdir(mode=0o755)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "chaos", str(disk)]
        if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            disks[name] = disk
        else:
            disk.rmdir()
    return disks


def _environment(place: Path) -> dict[str, str]:
    return {
        **os.environ,
        **dict.fromkeys(("DATABASE_URL", "REDIS_URL", *PARTS), ""),
        "CAPATAZ_HOME": str(place),
        "PYTHONUNBUFFERED": "1",
    }
