"""The state of the platform in the terminal, again and again."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError, connection
from django.utils import timezone

from capataz.models import Task, Worker
from capataz.models.counting import count
from capataz.models.queue_load import queue_loads
from capataz.models.throughput import throughput

STATUSES = ("pending", "inProgress", "completed", "failed", "cancelled", "expired")


class Command(BaseCommand):
    """``manage.py monitor``."""

    help = "Show tasks by status, queues, throughput, success rate and workers, every few seconds."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The options."""
        parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks (2)")
        parser.add_argument("--once", action="store_true", help="show it once and end")

    def handle(self, *args: Any, **options: Any) -> None:
        """Show it until Ctrl-C; a database that is away is said, and waited for."""
        try:
            while True:
                self._show()
                if options["once"]:
                    return
                time.sleep(max(0.1, options["every"]))
        except KeyboardInterrupt:
            return

    def _show(self) -> None:
        try:
            lines = list(_lines())
        except DatabaseError as error:
            connection.close()
            lines = [f"the database cannot be reached: {type(error).__name__}"]
        self.stdout.write("\n".join(lines) + "\n")


def _lines() -> Iterator[str]:
    last = throughput()
    rate = "-" if last.success_rate is None else f"{last.success_rate:.1%}"
    waits = [_ms(last.wait_percentile(share)) for share in (0.5, 0.95)]
    counts = (f"{status} {count(Task.objects.with_status(status))}" for status in STATUSES)
    yield f"--- {timezone.now():%Y-%m-%d %H:%M:%S} UTC"
    yield "tasks       " + "   ".join(counts)
    yield (
        f"last minute {last.succeeded} succeeded   {last.failed} failed   {last.lost} lost"
        f"   success rate {rate}   average run {_ms(last.mean_seconds)}"
        f"   wait p50 {waits[0]} p95 {waits[1]}"
    )
    for queue in queue_loads():
        state = f"paused: {queue.pause_reason or 'no reason given'}" if queue.is_paused else "open"
        oldest = "-" if queue.oldest_age is None else f"{queue.oldest_age:.0f} s"
        yield (
            f"queue       {queue.name:16} waiting {queue.shown_waiting:<8} later {queue.shown_later:<8}"
            f" limit {queue.waiting_limit or '-':<8} running {queue.running:<5} oldest {oldest:8} {state}"
        )
    for worker in Worker.objects.alive():
        yield (
            f"worker      {worker.name:16} {worker.phase:11} running {worker.running:<4} of"
            f" {worker.processes:<4} CPU {worker.cpu_percent:.0f} %   RAM {worker.ram_mb:.0f} MB"
        )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
