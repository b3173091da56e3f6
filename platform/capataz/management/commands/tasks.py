"""``manage.py tasks``: all tasks to files, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from capataz.errors import CapatazError
from capataz.lifecycle import exchange


class Command(BaseCommand):
    """Translates the words of the command line into verbs."""

    help = (
        "Write all tasks, with their attempts, to pending-tasks.json, completed-tasks.json and "
        "failed-tasks.json, or read them back. A task that is there already is left as it is."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """One word for each thing that can be done."""
        words = parser.add_subparsers(dest="word", required=True, parser_class=CommandParser)
        for word, what in (
            ("export", "write the files"),
            ("import", "read the files: all of it, or nothing"),
        ):
            words.add_parser(word, help=what).add_argument("folder", type=Path, help="where the files are")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the first word says."""
        verb = exchange.write if options["word"] == "export" else exchange.read
        try:
            counts = verb(options["folder"], self._report)
        except (CapatazError, OSError) as error:
            raise CommandError(str(error)) from None
        for name, count in counts.items():
            self.stdout.write(f"{count}\t{options['folder'] / name}")

    def _report(self, name: str, count: int) -> None:
        if count % 10_000 == 0:
            self.stderr.write(f"{name}: {count} tasks so far")
