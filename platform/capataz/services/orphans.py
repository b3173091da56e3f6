"""Servers that outlived the process that started them, and must be gone before the next one starts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from capataz.services.waiting import eventually

ORPHANS_WITHIN = 20  # seconds


def clear_orphans(directory: Path, stop_signal: signal.Signals) -> None:
    """End every process that works in ``directory``; returns when they are gone.

    Call it only as the owner of the home: whatever still works there has lost its parent. It is asked to
    stop, and killed after ORPHANS_WITHIN seconds. Usually it is stopping already: it dies with its parent.
    """
    for process in _working_in(directory):
        _send(process, stop_signal)
    if not eventually(lambda: not any(_working_in(directory)), ORPHANS_WITHIN):
        for process in _working_in(directory):
            _send(process, signal.SIGKILL)
        eventually(lambda: not any(_working_in(directory)), ORPHANS_WITHIN)


def _working_in(directory: Path) -> Iterator[psutil.Process]:
    wanted = str(directory.resolve())
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.cwd() == wanted:
                yield process
        except psutil.Error:  # gone, or not ours to look at
            continue


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)
