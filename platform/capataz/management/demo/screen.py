"""The screen: live where somebody watches a terminal, plain lines where the output is kept."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from capataz.management.demo.census import Moment

METRICS_EVERY = 3.0  # seconds
# Where lines go to a file, nothing tells how wide they may be.
FILE_WIDTH = 130
SHOWN = ("pending", "inProgress", "completed", "failed", "cancelled")


@dataclass
class _Pace:
    """Tasks a second, since the last block of metrics."""

    at: float
    finished: int = 0

    def next(self, finished: int) -> float:
        now = time.monotonic()
        rate = (finished - self.finished) / max(0.001, now - self.at)
        self.at, self.finished = now, finished
        return rate


class Screen:
    """Shows how far the demo is. Use it as a context manager: leaving it gives the terminal back."""

    def __init__(self) -> None:
        live = sys.stdout.isatty()
        self._console = Console(force_terminal=live, width=None if live else FILE_WIDTH, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._live: Live | None = None
        if live and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._began = time.monotonic()
        self._pace: _Pace | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the live part; lines may still be said."""
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, *lines: str, style: str = "") -> None:
        """Print lines that stay."""
        for line in lines:
            self._console.print(Text(line, style), soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a table that stays."""
        self._console.print(table)

    def show(self, total: int, moment: Moment, workers: int) -> None:
        """Show this moment, with the block of metrics every METRICS_EVERY seconds."""
        now = time.monotonic()
        if self._pace is None:
            self._pace = _Pace(now)
        elif now - self._pace.at >= METRICS_EVERY:
            self.metrics(moment, workers)
        if self._live:
            self._live.update(self._picture(total, moment, workers), refresh=True)

    def metrics(self, moment: Moment, workers: int) -> None:
        """The block of metrics."""
        rate = self._pace.next(moment.finished) if self._pace else 0.0
        counts = "  ".join(f"{name} {moment.counts[name]}" for name in SHOWN)
        self.say(
            f"[{time.monotonic() - self._began:5.1f} s] {counts}",
            f"          throughput {rate:.1f} tasks/s  average time {moment.mean_ms:.0f} ms  "
            f"retried {moment.retried}  recovered {moment.recovered}  workers {workers}",
        )

    def _picture(self, total: int, moment: Moment, workers: int) -> Group:
        if not self._bar.task_ids:
            self._bar.add_task("tasks", total=total)
        self._bar.update(self._bar.task_ids[0], completed=moment.finished)
        counts = "  ".join(f"{name} [b]{moment.counts[name]}[/]" for name in SHOWN)
        return Group(Text.from_markup(f"{counts}  workers [b]{workers}[/]"), self._bar)
