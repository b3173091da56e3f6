"""Fixtures for a worker's parent: a channel, and children forked for real."""

import contextlib
import os
import posix
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capataz.worker.channel import Channel


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    return Channel(4, tmp_path / "spool")


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Run something in a child of its own, in a process group of its own; returns its pid."""
    pids: list[int] = []

    def start(work: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                work()
                status = 0
            finally:
                # Not os._exit: there coverage writes down, for each child, all that this process ever ran.
                posix._exit(status)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
