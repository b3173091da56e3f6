"""A PostgreSQL and a Redis for as long as a block of code runs: for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from capataz.services.lock import HomeLock
from capataz.services.postgres import Postgres
from capataz.services.redis_server import Redis
from capataz.services.server import Server


@dataclass(frozen=True)
class Servers:
    """Both servers. ``postgres`` or ``redis`` is None where the environment named one that runs elsewhere."""

    home: Path
    database_url: str
    redis_url: str
    postgres: Postgres | None
    redis: Redis | None

    def own(self) -> list[Server]:
        """Those that are ours."""
        return [server for server in (self.postgres, self.redis) if server is not None]


@contextmanager
def embedded(home: Path | None = None) -> Iterator[Servers]:
    """Start what DATABASE_URL and REDIS_URL do not name; stop it at the end.

    Without a ``home`` the data is made for this once and deleted. If this process is killed, the servers die
    with it. From the main thread only. Raises HomeInUse if another process holds the home, StartFailed if a
    server does not start.
    """
    with _directory(home) as place, HomeLock(place):
        servers = choose_servers(place, os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL"))
        try:
            for server in servers.own():
                server.start()
            for server in servers.own():
                server.wait_until_ready()
            yield servers
        finally:
            for server in servers.own():
                server.stop()


def choose_servers(home: Path, database_url: str | None, redis_url: str | None) -> Servers:
    """Both servers: those that are named, and our own in ``home`` for the others. Starts nothing."""
    postgres = None if database_url else Postgres(home)
    redis = None if redis_url else Redis(home)
    return Servers(
        home=home,
        database_url=postgres.url if postgres else str(database_url),
        redis_url=redis.url if redis else str(redis_url),
        postgres=postgres,
        redis=redis,
    )


def make_home(home: Path) -> None:
    """Make the home if it does not exist: others may walk through it, which PostgreSQL's user has to."""
    if not home.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711)


@contextmanager
def _directory(home: Path | None) -> Iterator[Path]:
    if home is not None:
        make_home(home)
        yield home
        return
    place = Path(tempfile.mkdtemp(prefix="capataz-"))
    place.chmod(0o711)
    try:
        yield place
    finally:
        _remove(place)


def _remove(place: Path) -> None:
    link = place / "postgres"
    if link.is_symlink():  # the data had to be put elsewhere
        shutil.rmtree(link.resolve(), ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
