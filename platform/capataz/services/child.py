"""A program that we start, that leads a session of its own, and that dies with us."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capataz.services.launcher import wrapped
from capataz.services.undertaker import kill_session
from capataz.services.waiting import eventually


@dataclass(frozen=True)
class ProcessSpec:
    """What to run, as whom, and how to end it."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None  # None: ours
    cwd: Path | None = None
    user: tuple[int, int] | None = None  # uid and gid to become; None: stay who we are
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGTERM  # what it gets when its parent dies
    is_server: bool = False  # a supervisor stops these last
    prepare: Callable[[], None] | None = None  # called before every start


class Child:
    """One started program. Whatever it forks belongs to it and ends with it."""

    def __init__(self, spec: ProcessSpec, process: subprocess.Popen[bytes]) -> None:
        self.spec = spec
        self.pid = process.pid
        self._process = process

    @classmethod
    def start(cls, spec: ProcessSpec, output: IO[bytes] | int) -> Child:
        """Start ``spec``, with both its outputs going to ``output`` and nothing to read.

        Raises RuntimeError outside the main thread: the child would die with the thread that started it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "Start children from the main thread: they die with the thread that starts them."
            )
        process = subprocess.Popen(
            wrapped(spec.argv, spec.death_signal, spec.user),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=spec.env,
            cwd=spec.cwd,
            start_new_session=True,
        )
        return cls(spec, process)

    @property
    def output(self) -> IO[bytes]:
        """The end of the pipe to read from, if it was started with ``subprocess.PIPE``."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None before collect()."""
        return self._process.returncode

    def has_exited(self) -> bool:
        """Whether it has ended. Does not collect it: until then its pid names nobody else."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def collect(self) -> int:
        """Wait for its end, kill what it left behind, and give its exit code."""
        if self._process.returncode is None:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            # Before it is collected, since its number may be given to somebody else right after.
            kill_session(self.pid)
        return self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself; nothing happens if it has ended."""
        # Not Popen.send_signal: that would collect it, and what it left behind would be lost to us.
        if self._process.returncode is None:
            os.kill(self.pid, number)

    def stop(self, seconds: float) -> int:
        """Ask it to stop, kill it if it has not after ``seconds``, and give its exit code."""
        self.send(self.spec.stop_signal)
        if not eventually(self.has_exited, seconds):
            self.kill()
        return self.collect()

    def kill(self) -> None:
        """Kill it and everything that it started, at once."""
        if self._process.returncode is None:
            kill_session(self.pid)
