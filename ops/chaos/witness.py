"""The witness: what handlers wrote about themselves, one line per start and end.

A line is ``start|end|failed <task id> <start number> <child's pid> <worker's pid> <seconds>``. The seconds
are those of CLOCK_MONOTONIC, which all processes of a machine share and no clock fault touches.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "chaos-witness.log"


@dataclass(frozen=True, slots=True)
class Run:
    """One execution as its handler saw it: whether and when it got to its end, or was about to fail."""

    task: str
    number: int
    child: int
    worker: int
    began: float
    ended: float | None
    failed: float | None = None

    def lasted_over(self, moment: float) -> bool:
        """Whether this execution was under way at that moment, as far as anybody knows."""
        stopped = self.ended or self.failed
        return self.began < moment and (stopped is None or stopped > moment)


def write(word: str, task: Any) -> None:
    """Append a line about this running task, which has an ``id`` and a number of ``starts``."""
    line = f"{word} {task.id} {task.starts} {os.getpid()} {os.getppid()} {time.monotonic():.3f}\n"
    path = Path(os.environ["CAPATAZ_HOME"]) / FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        # One write, which O_APPEND makes atomic among processes that share the file.
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(home: Path) -> list[Run]:
    """Every execution, in the order of their starts."""
    path = home / FILE
    return parse(path.read_text().splitlines()) if path.exists() else []


def parse(lines: Iterable[str]) -> list[Run]:
    """The executions that these lines tell of."""
    started: dict[tuple[str, int, int], tuple[int, float]] = {}
    stopped: dict[str, dict[tuple[str, int, int], float]] = {"end": {}, "failed": {}}
    for line in lines:
        word, task, number, child, worker, seconds = line.split()
        key = task, int(number), int(child)
        if word == "start":
            started.setdefault(key, (int(worker), float(seconds)))
        else:
            stopped[word].setdefault(key, float(seconds))
    runs = [
        Run(*key, worker, began, stopped["end"].get(key), stopped["failed"].get(key))
        for key, (worker, began) in started.items()
    ]
    return sorted(runs, key=lambda run: run.began)


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The executions of each task, in the order of their starts."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.task].append(run)
    return found
