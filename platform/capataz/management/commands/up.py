"""``manage.py up``: the whole platform with one command."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, connections

from capataz import home
from capataz.servers import django_database
from capataz.services.errors import StartFailed
from capataz.services.startup import Wish, bring_up

DEFAULT_CONCURRENCY = (2, 10)
MOST_CONCURRENCY = 1000


class Command(BaseCommand):
    """Translates the options, and brings the platform up."""

    help = "Start everything: PostgreSQL, Redis, web, dispatcher, workers, beat and Flower. Ctrl-C stops it."
    # There may be no database yet, and the checks run in the processes that are started.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """The options; every one has a default that works."""
        parser.add_argument(
            "--data-dir", type=Path, default=home.home(), help="the home of all data (%(default)s)"
        )
        parser.add_argument(
            "--port", type=port_number, default=settings.PORT, help="of the web (%(default)s)"
        )
        parser.add_argument("--bind", default="127.0.0.1", help="the web's address (%(default)s)")
        parser.add_argument("--workers", type=_count, default=1, help="worker processes (%(default)s)")
        parser.add_argument(
            "--concurrency",
            type=_concurrency,
            default=_default_concurrency(),
            metavar="MIN,MAX",
            help="children of each worker (2,10)",
        )
        parser.add_argument("--no-flower", dest="flower", action="store_false", help="leave Flower out")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal asks for a stop."""
        place = options["data_dir"].absolute()
        database_url, redis_url = _named_servers()
        least, most = options["concurrency"]
        wish = Wish(
            home=place,
            database_url=database_url,
            redis_url=redis_url,
            address=options["bind"],
            port=options["port"],
            workers=options["workers"],
            min_concurrency=least,
            max_concurrency=most,
            flower=options["flower"],
            grace=settings.SHUTDOWN_GRACE,
        )
        try:
            bring_up(wish, have_registered)
        except StartFailed as error:
            raise CommandError(str(error)) from None


def have_registered(database_url: str, pids: set[int]) -> bool:
    """Whether the workers with these pids have entered themselves into the database of this URL."""
    from capataz.models import Worker

    # Settings were read before the database was there.
    connections.databases["default"].update(django_database(database_url))
    try:
        return set(Worker.objects.alive().filter(pid__in=pids).values_list("pid", flat=True)) == pids
    finally:
        connection.close()


def _named_servers() -> tuple[str | None, str | None]:
    """What the settings name, except for the servers of a platform that runs in the usual home."""
    run = home.running()
    database_url = None if run and run.database_url == settings.DATABASE_URL else settings.DATABASE_URL
    redis_url = None if run and run.redis_url == settings.REDIS_URL else settings.REDIS_URL
    return database_url, redis_url


def _default_concurrency() -> tuple[int, int]:
    least, most = DEFAULT_CONCURRENCY
    if "MAX_CONCURRENT_JOBS" in os.environ:
        most = settings.MAX_CONCURRENT_JOBS
    return min(least, most), most


def _concurrency(text: str) -> tuple[int, int]:
    try:
        least, most = (int(number) for number in text.split(","))
    except ValueError:
        raise ArgumentTypeError("use MIN,MAX, for example 2,10") from None
    if not 1 <= least <= most <= MOST_CONCURRENCY:
        raise ArgumentTypeError(f"needs 1 <= MIN <= MAX <= {MOST_CONCURRENCY}")
    return least, most


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise ArgumentTypeError("use a number from 1 to 100")
    return number


def port_number(text: str) -> int:
    """The port that an option names. Raises ArgumentTypeError, saying what is allowed."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise ArgumentTypeError("use a number from 1 to 65535")
    return number
