"""A Redis of our own, in the foreground. Not ``redis.py``: that name belongs to the client."""

from __future__ import annotations

import os
import signal

import redis

from capataz.services.binaries import find_redis
from capataz.services.child import ProcessSpec
from capataz.services.orphans import clear_orphans
from capataz.services.server import Server

# An append-only file synced every second, and never an eviction: Redis is the broker, and forgetting a
# message silently would leave it to the dispatcher to find out.
CONFIGURATION = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir .
appendonly yes
appendfsync everysec
save ""
maxmemory 0
maxmemory-policy noeviction
daemonize no
logfile ""
loglevel warning
"""


class Redis(Server):
    """The broker, over TCP on 127.0.0.1 with a password: what kombu, Flower and redis-py all understand."""

    name = "redis"

    @property
    def url(self) -> str:
        """A URL that kombu and redis-py understand."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def spec(self) -> ProcessSpec:
        """How to run it."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        configuration = self.directory / "redis.conf"
        # In a file and not in the arguments, which every user of the machine can read.
        with open(configuration, "w", opener=_for_owner_only) as file:
            file.write(CONFIGURATION.format(port=self.port, password=self.password))
        return ProcessSpec(
            name=self.name,
            argv=[str(find_redis()), str(configuration)],
            env={
                **os.environ,
                "LC_ALL": "C",
            },  # it refuses to start with a language that the machine lacks
            cwd=self.directory,
            is_server=True,
            prepare=self._clear,
        )

    def answers(self) -> bool:
        """Whether it answers a command now; it does not while it still reads its file."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _clear(self) -> None:
        clear_orphans(self.directory, signal.SIGTERM)


def _for_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
