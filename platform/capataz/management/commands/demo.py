"""``manage.py demo``: the whole platform at work, with one worker killed in the middle."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from capataz.home import REPOSITORY
from capataz.management.commands.up import port_number
from capataz.management.demo.errors import DemoFailed, Interrupted
from capataz.management.demo.interruption import Interruption
from capataz.management.demo.performance import perform
from capataz.management.demo.screen import Screen
from capataz.management.demo.stage import Wish
from capataz.management.demo.workload import FEWEST, MOST, make_workload


class Command(BaseCommand):
    """Translates the options, and shows the demo."""

    help = (
        "Start everything in a temporary directory, submit sample tasks, kill a worker, and check every "
        "task's end. The exit code is 0 if all is well."
    )
    # The platform that it starts checks itself.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """The options; every one has a default that works."""
        parser.add_argument("--tasks", type=_tasks, default=300, help="how many to submit (%(default)s)")
        parser.add_argument("--seed", type=int, default=7, help="which ones; the same seed, the same tasks")
        parser.add_argument("--port", type=port_number, help="of the web (a free one)")
        parser.add_argument("--keep", action="store_true", help="keep the data directory")
        parser.add_argument(
            "--samples",
            type=Path,
            default=REPOSITORY / "fixtures" / "samples",
            help="sample files (%(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Show the demo, and exit: 0 if it passed, 1 if not, 128 and the signal's number if interrupted."""
        wish = Wish(options["samples"].absolute(), options["port"], options["keep"])
        workload = make_workload(options["tasks"], options["seed"])
        with Interruption() as interruption, Screen() as screen:
            try:
                passed = perform(wish, workload, screen, interruption)
            except DemoFailed as error:
                raise CommandError(str(error)) from None
            except Interrupted as error:
                screen.say(str(error))
                sys.exit(128 + error.number)
        sys.exit(not passed)


def _tasks(text: str) -> int:
    number = int(text)
    if not FEWEST <= number <= MOST:
        raise ArgumentTypeError(f"use a number from {FEWEST} to {MOST}")
    return number
