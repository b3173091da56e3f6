"""``manage.py restore``: put a backup back into PostgreSQL and Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from capataz import home
from capataz.services import backup
from capataz.services.embedded import embedded
from capataz.services.errors import BackupFailed, StartFailed

NEXT = """\
What to do next:
  1. manage.py migrate     if this is a newer version than the one that made the backup; `up` does it
  2. start the platform    it takes back what its former workers held, and announces what waits
Tasks that ended after the backup was made run once more, and those submitted after it are not there."""


class Command(BaseCommand):
    """Looks whether anything is in the way, and puts the backup back."""

    help = (
        "Put a backup back into the database and the Redis of the settings, or into the embedded servers of "
        "a platform that is stopped. Without a name, list the backups."
    )
    # The database may be empty.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Which backup, and what of it."""
        parser.add_argument("backup", nargs="?", help="the name of a backup, its path, or latest")
        parser.add_argument("--only", choices=["postgres", "redis"], help="restore one of the two")
        parser.add_argument(
            "--force", action="store_true", help="even if the platform runs, or there are tasks or messages"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """List or restore."""
        try:
            if options["backup"] is None:
                self._list()
            else:
                self._restore(options["backup"], options["only"], options["force"])
        except (BackupFailed, StartFailed) as error:
            raise CommandError(str(error)) from None

    def _list(self) -> None:
        for path in backup.backups():
            size = sum(file.stat().st_size for file in path.iterdir())
            self.stdout.write(f"{path.name}\t{size:,} bytes")
        self.stderr.write(f"in {settings.BACKUP_DIR}; `manage.py restore latest` puts the last one back")

    def _restore(self, name: str, only: str | None, force: bool) -> None:
        chosen = backup.find(name)
        manifest = backup.read_manifest(chosen)
        if not force and _platform_runs():
            raise CommandError("the platform runs: stop it first, on all machines (or use --force)")
        with _servers() as (database, redis_url):
            targets = (
                database if only != "redis" else None,
                redis_url if only != "postgres" else None,
            )
            if not force and (objections := backup.what_is_in_the_way(*targets)):
                because = "; ".join(objections)
                raise CommandError(f"{because}: nothing was restored. --force replaces what is there")
            if targets[0] is not None:
                backup.restore_postgres(chosen, manifest, targets[0])
                self.stdout.write(f"restored PostgreSQL from {chosen}")
            if targets[1] is not None:
                keys = backup.restore_redis(chosen, targets[1])
                self.stdout.write(f"restored {keys} keys of Redis")
        self.stdout.write(NEXT)


def _platform_runs() -> bool:
    """Whether the platform of this home runs on the servers that would be written to."""
    run = home.running()
    return run is not None and (
        run.database_url == settings.DATABASE_URL or run.redis_url == settings.REDIS_URL
    )


@contextmanager
def _servers() -> Iterator[tuple[str, str]]:
    """The servers that the settings name; else our own, which run for this only."""
    database, redis_url = settings.DATABASE_URL, settings.REDIS_URL
    if database is not None and redis_url is not None:
        yield database, redis_url
        return
    with embedded(settings.CAPATAZ_DATA_DIR) as own:
        yield database or own.database_url, redis_url or own.redis_url
