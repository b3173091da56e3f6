"""``manage.py rotate_keys``: encrypt every sensitive value anew, under the first of ENCRYPTION_KEYS."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from capataz import database
from capataz.lifecycle import rotation

PASSES = 10


class Command(BaseCommand):
    """Rotates until no row is left under another key."""

    help = (
        "Encrypt every sensitive value of the tasks anew, under the first of ENCRYPTION_KEYS. The platform "
        "may run meanwhile, and this may be stopped and begun again. Afterwards the other keys are needed "
        "only for backups and archives from before."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Go through the rows until a pass met none that was changed under its hands."""
        for _ in range(PASSES):
            if not self._once():
                return
        raise CommandError("some rows were changed by others each time; run it again")

    def _once(self) -> bool:
        """One pass over all rows; whether another one is needed."""
        seen = changed = raced = unreadable = 0
        for done in rotation.rotate(database.driver()):
            seen, changed = seen + done.looked_at, changed + done.changed
            raced, unreadable = raced + done.raced, unreadable + done.unreadable
            self.stderr.write(f"{seen} tasks looked at, {changed} encrypted anew")
        if unreadable:
            raise CommandError(f"{unreadable} tasks cannot be read: a key is missing, or they were damaged")
        self.stdout.write(f"{changed} tasks encrypted anew, of {seen}")
        return raced > 0
