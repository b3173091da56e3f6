"""The stage: a platform in a directory of its own, its mail server and its sample files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from capataz import home
from capataz.home import REPOSITORY, Run
from capataz.management.demo.errors import DemoFailed
from capataz.management.demo.interruption import Interruption
from capataz.servers import PARTS
from capataz.services.child import Child, ProcessSpec
from capataz.services.keepsakes import free_port
from capataz.services.smtp_sink import SmtpSink
from capataz.services.waiting import eventually

READY_WITHIN = 260  # seconds: the platform gives up on its own before that
# Seconds that the platform has to stop; it needs fifteen at most.
STOP_WITHIN = 40
GONE_WITHIN = 20  # seconds after the platform has ended: what is left is killed within twelve
TOKEN_WITHIN = 60
WORKERS = 2
CONCURRENCY = "2,4"

# Whatever the environment or a .env file names, the demo has servers of its own.
UNNAMED = ("DATABASE_URL", "REDIS_URL", *PARTS, "EMAIL_USER", "EMAIL_PASSWORD")

FOLDERS = {
    "UPLOAD_ROOT": "uploads",
    "PROCESSED_ROOT": "processed",
    "DATA_ROOT": "data",
    "EXPORT_ROOT": "exports",
}


@dataclass(frozen=True)
class Wish:
    """Where the samples are, on which port the web shall listen, and whether to keep the directory."""

    samples: Path
    port: int | None = None
    keep: bool = False


class Stage:
    """One platform, from outside. ``stage()`` makes it and takes it away again."""

    def __init__(self, place: Path, sink: SmtpSink, log: Path, port: int) -> None:
        self.place = place
        self.sink = sink
        self.log = log
        self._port = port
        self._child: Child | None = None
        self._seen: dict[int, int] = {}  # pid to start time, of every process that we have seen

    def start(self, interruption: Interruption) -> Run:
        """Start the platform; returns when it is ready. Raises DemoFailed or Interrupted."""
        argv = [
            sys.executable, str(REPOSITORY / "manage.py"), "up", "--port", str(self._port),
            "--workers", str(WORKERS), "--concurrency", CONCURRENCY,
        ]  # fmt: skip
        with self.log.open("wb") as output:
            self._child = child = self._start(argv, output)

        def is_settled() -> bool:
            self.look()
            return child.has_exited() or home.running(self.place) is not None

        if not interruption.wait_until(is_settled, READY_WITHIN) or child.has_exited():
            raise DemoFailed(f"the platform did not become ready: {self._last_words()}")
        return self.run()

    def run(self) -> Run:
        """What runs now. Raises DemoFailed if the platform has ended."""
        run = home.running(self.place)
        if run is None:
            raise DemoFailed("the platform has ended")
        return run

    def token(self, interruption: Interruption) -> str:
        """A new operator's token, made as a person would make it."""
        argv = [sys.executable, str(REPOSITORY / "manage.py"), "token", "create"]
        done = subprocess.run(
            [*argv, "--role", "operator", "--name", "demo"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOKEN_WITHIN,
            check=False,
            start_new_session=True,  # a Ctrl-C is for us
        )
        interruption.check()
        if done.returncode:
            raise DemoFailed(f"no token could be made: {done.stderr.strip()[-1000:]}")
        return done.stdout.strip()

    def look(self) -> None:
        """Remember every process of the platform that lives now."""
        if self._child is None:
            return
        with contextlib.suppress(psutil.Error):
            family = [self._child.pid, *_descendants(self._child.pid)]
            self._seen.update({pid: started for pid in family if (started := home.start_time(pid))})

    def stop(self) -> list[int]:
        """End the platform; returns the pids of processes that outlived it, of which there should be none."""
        self.look()
        child, self._child = self._child, None
        if child is None:
            return []
        child.stop(STOP_WITHIN)
        eventually(lambda: not self._left(), GONE_WITHIN)
        return self._left()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def _left(self) -> list[int]:
        return [pid for pid, started in self._seen.items() if home.start_time(pid) == started]

    def _start(self, argv: list[str], output: IO[bytes]) -> Child:
        return Child.start(ProcessSpec("platform", argv, env=self._environment(), cwd=REPOSITORY), output)

    def _environment(self) -> dict[str, str]:
        roots = {name: str(self.place / folder) for name, folder in FOLDERS.items()}
        return {
            **os.environ,
            **dict.fromkeys(UNNAMED, ""),
            **roots,
            "APP_ENV": "development",
            "CAPATAZ_HOME": str(self.place),
            "CAPATAZ_DEMO": "1",
            "CAPATAZ_HANDLERS": "tasks",
            # A process that is killed leaves its temporary files behind.
            "TMPDIR": str(self.place / "tmp"),
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(self.sink.port),
            "EMAIL_USE_TLS": "0",
            "ALLOWED_HOSTS": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
        }


@contextmanager
def stage(wish: Wish) -> Iterator[Stage]:
    """A stage whose platform is not started yet; whatever was started has ended when the block is left.

    The directory is removed, unless it shall be kept. The log lies beside it and is the caller's to remove.
    """
    with ExitStack() as cleanup:
        place = _directory(cleanup, wish.keep)
        _copy_samples(wish.samples, place)
        sink = SmtpSink(place / "mail")
        sink.start()
        cleanup.callback(sink.stop)
        made = Stage(place, sink, place.with_name(f"{place.name}.log"), wish.port or free_port())
        cleanup.callback(made.stop)
        yield made


def _directory(cleanup: ExitStack, keep: bool) -> Path:
    place = Path(tempfile.mkdtemp(prefix="capataz-demo-"))
    if not keep:
        cleanup.callback(_remove, place)
    place.chmod(0o711)  # PostgreSQL's user has to walk through it
    (place / "tmp").mkdir(mode=0o700)
    return place


def _copy_samples(samples: Path, place: Path) -> None:
    for name in ("uploads", "data"):
        if not (samples / name).is_dir():
            raise DemoFailed(f"{samples} has no folder {name}; name the sample files with --samples")
        # Without their modes: the checkout may be read-only.
        shutil.copytree(samples / name, place / name, copy_function=shutil.copyfile)


def _remove(place: Path) -> None:
    link = place / "postgres"
    if link.is_symlink():  # PostgreSQL's user could not reach the directory
        shutil.rmtree(link.resolve(), ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]
