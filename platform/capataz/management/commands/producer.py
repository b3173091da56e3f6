"""Sample tasks, one after the other, so that there is something to look at."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from capataz import handlers
from capataz.lifecycle.submission import submit

SAMPLES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("demo.echo", {"message": "hola"}, 8),
    ("demo.compute", {"n": 20}, 5),
    ("demo.sleep", {"seconds": 0.5}, 2),
    ("demo.fail", {"times": 1}, 5),
)


class Command(BaseCommand):
    """``manage.py producer``."""

    help = "Submit sample tasks of the demo handlers until Ctrl-C, or --count of them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The options."""
        parser.add_argument("--rate", type=float, default=2.0, help="tasks per second (2)")
        parser.add_argument("--count", type=int, default=0, help="how many; 0 is without end (0)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Submit; a database that is away is said, and waited for."""
        if not handlers.is_registered("demo.echo"):
            raise CommandError("the demo handlers are off: set CAPATAZ_DEMO=1 here and for the workers")
        if options["rate"] <= 0:
            raise CommandError("--rate must be above 0")
        samples = itertools.cycle(SAMPLES)
        submitted = 0
        try:
            while not options["count"] or submitted < options["count"]:
                submitted += self._submit(*next(samples))
                time.sleep(1 / options["rate"])
        except KeyboardInterrupt:
            pass
        self.stdout.write(f"{submitted} tasks submitted")

    def _submit(self, task_type: str, data: dict[str, Any], priority: int) -> int:
        try:
            task = submit(task_type, data, priority=priority, submitted_by="producer")
        except DatabaseError as error:
            connection.close()
            self.stderr.write(f"not accepted, the database cannot be reached: {type(error).__name__}")
            return 0
        self.stdout.write(f"{task.id} {task_type}")
        return 1
