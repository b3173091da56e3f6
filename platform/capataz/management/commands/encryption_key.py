"""``manage.py encryption_key``: make a key for ENCRYPTION_KEYS."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from capataz.keyring import KEY_ID, new_key


class Command(BaseCommand):
    """Prints a new key."""

    help = "Print a new random key, as ENCRYPTION_KEYS takes it. It is not kept anywhere."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """The id of the key."""
        parser.add_argument("id", help="its id, such as the date: 1 to 32 letters, digits, - or _")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print it, alone on stdout."""
        if not KEY_ID.fullmatch(options["id"]):
            raise CommandError("the id must be 1 to 32 letters, digits, - or _")
        self.stdout.write(new_key(options["id"]))
