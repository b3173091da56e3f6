"""A copy of what Redis holds, made and put back over the connection: any Redis, however it stores its data.

One line of JSON for each key: its name, its value as DUMP gives it, and its milliseconds to live. Handlers'
tasks need nothing of it, since their rows are the truth; plain tasks are nowhere else.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis

from capataz import durable
from capataz.lifecycle.dispatch import EPOCH_KEY
from capataz.lifecycle.submission import known_queues
from capataz.pointer import queue_key
from capataz.priority import REDIS_STEPS
from capataz.services.errors import BackupFailed

# Kinds that hold messages: kombu's lists of those that wait, and its hash and set of those that are not
# acknowledged; or nothing, at the moment. A message moves between them, so all are read in one transaction.
OF_MESSAGES = (b"list", b"hash", b"zset", b"none")
UNACKED, UNACKED_INDEX, UNACKED_MUTEX = b"unacked", b"unacked_index", b"unacked_mutex"
# Not put back: without its epoch the dispatcher announces everything anew, which is what a restored platform
# needs; and a lock whose holder is gone.
LEFT_OUT = {EPOCH_KEY.encode(), UNACKED_MUTEX}
AT_ONCE = 100  # keys asked for in one round trip


def write(url: str, path: Path) -> int:
    """Copy what Redis holds to a new file; returns how many keys. Raises BackupFailed if Redis is away."""
    keys = 0
    with (
        _client(url) as client,
        durable.new_file(path) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb") as lines,
    ):
        for record in _records(client):
            lines.write(json.dumps(record).encode() + b"\n")
            keys += 1
    return keys


def read(url: str, path: Path) -> int:
    """Put the keys of a copy back, each in place of one of its name; returns how many."""
    keys = 0
    with _client(url) as client, gzip.open(path) as lines:
        for some in _batches(lines, AT_ONCE):
            pipeline = client.pipeline(transaction=False)
            for record in map(json.loads, some):
                key, value = base64.b64decode(record["key"]), base64.b64decode(record["value"])
                pipeline.restore(key, record["ttl"] or 0, value, replace=True)
            try:
                pipeline.execute()
            except redis.ResponseError as error:
                raise BackupFailed(
                    f"Redis does not take its copy back: {error}. It has to be of the version that the "
                    "backup's manifest names, or later."
                ) from None
            keys += len(some)
        client.delete(EPOCH_KEY)
    return keys


def version(url: str) -> str:
    """The server's version."""
    with _client(url) as client:
        return str(client.info("server")["redis_version"])


def holds_messages(url: str) -> bool:
    """Whether there are messages that wait, or that are not acknowledged."""
    with _client(url) as client:
        return bool(client.exists(*_places_of_messages()))


def _records(client: redis.Redis) -> Iterator[dict[str, Any]]:
    kinds: dict[bool, set[bytes]] = {True: set(_places_of_messages()), False: set()}
    for some in _batches(client.scan_iter(count=1000), AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for key in some:
            pipeline.type(key)
        for key, kind in zip(some, pipeline.execute(), strict=True):
            kinds[kind in OF_MESSAGES].add(key)
    # A queue that was empty when we looked may have got the message that another one has just lost.
    yield from _dumps(client, sorted(kinds[True] - LEFT_OUT), together=True)
    for some in _batches(sorted(kinds[False] - LEFT_OUT), AT_ONCE):
        yield from _dumps(client, some, together=False)


def _dumps(client: redis.Redis, keys: list[bytes], *, together: bool) -> Iterator[dict[str, Any]]:
    pipeline = client.pipeline(transaction=together)
    for key in keys:
        pipeline.dump(key)
        pipeline.pttl(key)
    answers = pipeline.execute()
    for key, value, ttl in zip(keys, answers[::2], answers[1::2], strict=True):
        if value is not None:  # else it is gone
            encoded = {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
            yield {**encoded, "ttl": ttl if ttl >= 0 else None}


def _places_of_messages() -> list[bytes]:
    lists = [queue_key(queue, step).encode() for queue in known_queues() for step in REDIS_STEPS]
    return [*lists, UNACKED, UNACKED_INDEX]


def _batches(each: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(each)
    while some := list(itertools.islice(iterator, size)):
        yield some


def _client(url: str) -> redis.Redis:
    # Longer than anybody else waits: a long list is one answer.
    return redis.Redis.from_url(url, socket_timeout=60, socket_connect_timeout=5)
