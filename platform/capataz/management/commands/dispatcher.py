"""``manage.py dispatcher``: releases tasks to the workers, and takes them back from the dead ones."""

from __future__ import annotations

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from capataz.lifecycle.dispatch import Dispatcher
from capataz.lifecycle.recovery import Recovery

# Seconds within which recovery has to end after it was asked to.
PATIENCE = 2.0


class Command(BaseCommand):
    """Runs both until SIGTERM or SIGINT; two such processes share the work safely."""

    help = "Release tasks to Redis and recover those of dead workers, until SIGINT or SIGTERM."

    def handle(self, *args: Any, **options: Any) -> None:
        """Run; fails if recovery ends unasked, so that whoever started us starts us again."""
        shift = Shift(Dispatcher(), Recovery())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: shift.stop())
        if not shift.run():
            raise CommandError("recovery has ended unasked")


class Shift:
    """A dispatcher in this thread and a recovery beside it, which end together."""

    def __init__(self, dispatcher: Dispatcher, recovery: Recovery) -> None:
        self._dispatcher = dispatcher
        self._recovery = recovery
        self._asked = False

    def run(self) -> bool:
        """Work until asked to stop; False if it ended because recovery died."""
        self._recovery.start()
        threading.Thread(target=self._watch, name="capataz-watch", daemon=True).start()
        try:
            self._dispatcher.run()
        finally:
            self._recovery.stop()
            self._recovery.join(PATIENCE)
        return self._asked

    def stop(self) -> None:
        """End after the current turn; returns at once."""
        self._asked = True
        self._dispatcher.stop()
        self._recovery.stop()

    def _watch(self) -> None:
        self._recovery.join()
        self._dispatcher.stop()
