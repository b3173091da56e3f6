"""``manage.py backup``: copy PostgreSQL and Redis to files, while the platform runs."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from capataz.services.backup import back_up
from capataz.services.errors import BackupFailed


class Command(BaseCommand):
    """Makes a backup and says where it lies."""

    help = (
        "Back up PostgreSQL and Redis now, as the schedule does every hour; `manage.py restore` puts it back."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Make one."""
        if settings.DATABASE_URL is None or settings.REDIS_URL is None:
            raise CommandError("no servers to back up: start the platform, or set DATABASE_URL and REDIS_URL")
        try:
            made = back_up()
        except BackupFailed as error:
            raise CommandError(str(error)) from None
        if "skipped" in made:
            raise CommandError(made["skipped"])
        size = made["postgres"]["bytes"] + made["redis"]["bytes"]
        self.stdout.write(f"{made['backup']} ({size:,} bytes); deleted {len(made['deleted'])} older ones")
