"""Dispatch: deciding what is released to the workers, and announcing it in Redis.

The backlog stays in PostgreSQL. Only a window of it is released, so that priority is exact up to the
window, and a pause or a cancel acts at once. Whatever happens to the messages, the rows know better:
what nobody claims is published again.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import redis
from django.conf import settings
from redis.exceptions import NoPermissionError

from capataz import pointer
from capataz.database import Connection, Session
from capataz.lifecycle import circuit_breaking, overriding, rollups, settling, task_results, wakeup
from capataz.lifecycle import crew as crews
from capataz.lifecycle.crew import Crew
from capataz.lifecycle.lanes import Lanes, aged_after
from capataz.lifecycle.submission import known_queues
from capataz.lifecycle.task_results import Record
from capataz.priority import REDIS_STEPS, redis_step
from capataz.sql import statement

# The first half of the advisory lock under which one queue is released.
RELEASE_LOCK = 0x43505A51

# A string (any value, kept for ever) that goes when Redis loses its data. Missing: publish all again.
EPOCH_KEY = "capataz:epoch"

# What Redis calls the connection of a dispatcher.
CLIENT_NAME = "capataz-dispatcher"

MOST = 1000  # rows moved by one statement
HOUSEKEEPING = 0.5  # seconds between two looks at deadlines and unclaimed tasks
FOLDING = 5.0  # seconds between two foldings of roll-ups
CREW = 0.25  # seconds for which the crew is taken to be unchanged
LINGER = 2.0  # seconds of quick looks after the last release
BUNDLE_BYTES = 1024 * 1024
# Released tasks whose messages still lie in Redis are published again only after this long: workers
# that are busy for an hour are no reason to fill Redis with copies.
PATIENCE_WITH_A_FULL_LIST = 60.0  # seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Released:
    """One released task, as far as announcing it needs. ``alone`` asks for a message of its own."""

    id: uuid.UUID
    type: str
    queue: str
    priority: int
    alone: bool
    size: int


class Dispatcher:
    """One releaser. Two share the work safely: a lock per queue and release, and SKIP LOCKED."""

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(
            settings.CELERY_BROKER_URL,
            socket_timeout=1,
            socket_connect_timeout=1,
            client_name=CLIENT_NAME,
        )
        self._session = Session("dispatcher", durable=False, on_connect=self._listen)
        self._crew = Crew()
        self._lanes = Lanes()
        self._crew_at = self._kept_house_at = self._folded_at = self._released_at = -math.inf
        self._redis_back_at = -math.inf
        self._redis_run: str | None = None
        self._stopping = False

    def stop(self) -> None:
        """End ``run`` after the current turn."""
        self._stopping = True

    def run(self) -> None:
        """Turn until stopped; a fault of PostgreSQL or Redis is waited out."""
        while not self._stopping:
            try:
                released = self.turn()
                self._rest(released)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                _log.warning("the dispatcher has no database: %s", error)
                self._session.close()
                time.sleep(0.5)

    def turn(self) -> int:
        """Release what may be released now; returns how many tasks that were."""
        connection = self._session.connection()
        now = time.monotonic()
        if now - self._crew_at >= CREW:
            self._crew, self._crew_at = crews.present(connection), now
            self._lanes.flows = overriding.flows(connection)
            self._crew.single = self._lanes.single
        connection.execute(statement("release_due"), {"most": MOST})
        if settling.settle(connection):
            self._released_at = now
        self._lanes.begin()
        keeps_house = now - self._kept_house_at >= HOUSEKEEPING
        if keeps_house:
            self._kept_house_at = now
            self._keep_house(connection)
        if now - self._folded_at >= FOLDING:
            self._folded_at = now
            rollups.fold(connection)
        if not self._redis_is_up():
            return 0
        released = 0
        waiting = connection.execute(statement("waiting_queues")).fetchall()
        unclaimed = self._lanes.watched() - {queue for queue, _, _ in waiting}
        for queue, plain, laned in [*waiting, *((queue, False, False) for queue in sorted(unclaimed))]:
            batch = self._release(connection, queue, laned=laned)
            if plain and self._crew.slots.get(queue):
                self._lanes.park(connection, queue, self._crew.types[queue], now=keeps_house)
            self._publish(batch)
            released += len(batch)
        if released:
            self._released_at = now
        return released

    # Releasing.

    def _release(self, connection: Connection, queue: str, *, laned: bool = False) -> list[Released]:
        """The next tasks of this queue, as many as the window has room for. ``laned``: some wait in lanes."""
        slots, types = self._crew.slots.get(queue, 0), self._crew.types.get(queue, set())
        if not slots or not types:
            return []
        with connection.transaction():
            mine = {"lock": RELEASE_LOCK, "queue": queue}
            if connection.execute(statement("lock_queue"), mine).fetchall() != [(True,)]:
                return []
            gates = circuit_breaking.gates(connection, types)
            self._lanes.admit(gates)
            if gates:  # tasks of these types go one by one: from lanes, wherever they wait
                self._lanes.park(connection, queue, types, now=True)
                laned = True
            room = slots * settings.WINDOW - self._bundles_out(connection, queue)
            if self._lanes.chooses(queue, laned):
                rows = self._lanes.release(
                    connection, queue, self._crew, max(0.0, room), settings.VERIFY_FIRST
                )
                return [Released(*row) for row in rows]
            free = self._lanes.free(types)
            if room <= 0 or not free:
                return []
            sizes = {task_type: self._crew.bundle_size(task_type) for task_type in free}
            parameters = {
                "queue": queue,
                "types": list(sizes),
                "shares": [1 / size for size in sizes.values()],
                "room": room,
                "most": min(MOST * 4, math.ceil(room * max(sizes.values()))),
                "verify": settings.VERIFY_FIRST,
            }
            rows = connection.execute(statement("release"), parameters).fetchall()
        return [Released(*row) for row in rows]

    def _bundles_out(self, connection: Connection, queue: str) -> float:
        rows = connection.execute(statement("out"), {"queue": queue})
        return math.fsum(count / self._crew.bundle_size(task_type) for task_type, count in rows)

    # Announcing.

    def _publish(self, released: Iterable[Released]) -> None:
        """Announce released tasks. A failure costs nothing: they are verified in a few seconds."""
        batch = sorted(released, key=lambda each: (-each.priority, each.id))
        if not batch:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for bundle in bundles(batch, self._crew):
            first = bundle[0]
            step = redis_step(first.priority)
            message = pointer.encode(first.type, first.queue, step, [each.id for each in bundle])
            pipeline.lpush(pointer.queue_key(first.queue, step), message)
        pipeline.get(EPOCH_KEY)
        try:
            epoch: Any = pipeline.execute()[-1]
        except redis.RedisError as error:
            self._redis_failed(error)
            return
        if epoch is None:
            self._redis_forgot()

    def _keep_house(self, connection: Connection) -> None:
        expire(connection)
        self._lanes.keep_house(connection, MOST)
        usable = [
            name for [name] in connection.execute("SELECT name FROM capataz_queue WHERE paused_at IS NULL")
        ]
        types = self._crew.all_types()
        with connection.transaction():
            circuit_breaking.gates(connection, types)
        here = {
            "queues": [queue for queue in usable if self._crew.slots.get(queue)],
            "types": types,
            "most": MOST,
        }
        connection.execute(statement("withdraw"), here)
        if self._redis_is_up():
            self._check_epoch()
            self._verify(connection, here, everything=False)

    def _verify(self, connection: Connection, here: dict[str, Any], *, everything: bool) -> int:
        """Publish again what nobody has claimed for too long; returns how many tasks that were."""
        empty = here["queues"] if everything else self._empty_queues(here["queues"])
        parameters = {
            **here,
            "queues": here["queues"],
            "empty": empty,
            "all": everything,
            "first": settings.VERIFY_FIRST,
            "longest": settings.VERIFY_LONGEST,
            "patience": PATIENCE_WITH_A_FULL_LIST,
            "aged": aged_after(),
        }
        rows = connection.execute(statement("verify"), parameters).fetchall()
        if rows:
            _log.info("publishing %d unclaimed tasks again", len(rows))
            self._publish(Released(*row) for row in rows)
        return len(rows)

    def _empty_queues(self, queues: list[str]) -> list[str]:
        """The queues of which Redis holds no message: whatever they have released is lost."""
        keys = [pointer.queue_key(queue, step) for queue in queues for step in REDIS_STEPS]
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.llen(key)
        try:
            lengths: list[Any] = pipeline.execute(raise_on_error=False)
            for key, length in zip(keys, lengths, strict=True):
                if isinstance(length, redis.ResponseError):
                    self._move_aside(key)
        except redis.RedisError as error:
            self._redis_failed(error)
            return []
        count = len(REDIS_STEPS)
        totals = [lengths[index * count : (index + 1) * count] for index in range(len(queues))]
        return [queue for queue, total in zip(queues, totals, strict=True) if not any(map(_number, total))]

    def _move_aside(self, key: str) -> None:
        """Free the name of a queue's list from something else that has it: no worker could take from there.

        It is not ours, and may be missed.
        """
        if self._redis.type(key) not in (b"list", b"none"):
            aside = f"capataz:aside:{key}:{uuid.uuid4()}"
            self._redis.renamenx(key, aside)
            _log.error("the Redis key %s is a queue's and was no list: renamed to %s", key, aside)

    # Redis.

    def _redis_is_up(self) -> bool:
        return time.monotonic() >= self._redis_back_at

    def _redis_failed(self, error: redis.RedisError) -> None:
        # Of a failed pipeline the text begins with the whole command.
        _log.warning("Redis cannot be used, releasing waits a second: %s", str(error)[-200:])
        self._redis_back_at = time.monotonic() + 1.0

    def _check_epoch(self) -> None:
        try:
            run_id = self._run_id()
            restarted, self._redis_run = self._redis_run not in (None, run_id), run_id
            # A restart may have lost the last second even where the epoch is still there.
            if restarted or self._redis.type(EPOCH_KEY) != b"string":
                self._redis_forgot()
        except redis.RedisError as error:
            self._redis_failed(error)

    def _run_id(self) -> str | None:
        """Which run of Redis this is; None where we may not know."""
        try:
            run_id: str | None = self._redis.info("server").get("run_id")
            return run_id
        except NoPermissionError:
            return None

    def _redis_forgot(self) -> None:
        """Redis has lost data, or may have: publish every released task again, at once."""
        here = {"queues": sorted(self._crew.slots), "types": self._crew.all_types(), "most": MOST * 100}
        try:
            self._redis.set(EPOCH_KEY, str(uuid.uuid4()))
        except redis.RedisError as error:
            self._redis_failed(error)
            return
        again = self._verify(self._session.connection(), here, everything=True)
        if again:
            _log.warning("Redis has lost its data or was restarted: published %d tasks again", again)

    # Rest.

    def _listen(self, connection: Connection) -> None:
        if self._session.backend is not None:
            connection.execute(f"LISTEN {wakeup.CHANNEL}")
        else:
            _log.warning(
                "behind a pooler nobody can wake the dispatcher: at rest it looks every %g s"
                " (CAPATAZ_DISPATCH_IDLE_POLL_SECONDS)",
                settings.DISPATCH_IDLE_POLL,
            )
        connection.execute(statement("declare_queues"), {"names": sorted(known_queues())})
        circuit_breaking.declare(connection)
        self._crew_at = -math.inf

    def _rest(self, released: int) -> None:
        """Sleep until there may be something to do: a NOTIFY, a due time, or the next look."""
        busy = released or time.monotonic() - self._released_at < LINGER
        patience = settings.DISPATCH_BUSY_POLL if busy else settings.DISPATCH_IDLE_POLL
        connection = self._session.connection()
        if not busy:
            [[due]] = connection.execute(statement("next_due")).fetchall()
            if due is not None:
                patience = max(0.001, min(patience, due))
        patience = max(0.001, min(patience, self._lanes.due - time.monotonic()))
        for _ in connection.notifies(timeout=patience, stop_after=1):
            # Whoever rings keeps quiet for a moment afterwards: look often meanwhile.
            self._released_at = time.monotonic()


def expire(connection: Connection) -> None:
    """End the tasks that nobody has started before their deadline."""
    with connection.transaction():
        late = connection.execute(statement("expire"), {"most": MOST}).fetchall()
        task_results.record(connection, [Record(task_id) for [task_id] in late])


def bundles(released: Iterable[Released], crew: Crew) -> Iterator[list[Released]]:
    """These tasks as messages, in their order: tasks of one type and priority together, up to the size
    that keeps a bundle short; whatever has ended badly before goes alone.

    A bundle stands where its first task stood, so that no message overtakes one of a higher priority.
    The size also follows the backlog: a handful of tasks is spread over the slots, not piled on one.
    """
    batch = list(released)
    waiting = Counter((each.queue, each.type) for each in batch)
    made: list[list[Released]] = []
    open_bundles: dict[tuple[str, str, int], list[Released]] = {}
    for each in batch:
        slots = max(1, crew.slots.get(each.queue, 1))
        size = min(crew.bundle_size(each.type), math.ceil(waiting[each.queue, each.type] / slots))
        key = each.queue, each.type, each.priority
        bundle = open_bundles.get(key, [])
        fits = len(bundle) < size and sum(item.size for item in bundle) + each.size <= BUNDLE_BYTES
        if bundle and fits and not each.alone:
            bundle.append(each)
            continue
        made.append([each])
        if not each.alone:
            open_bundles[key] = made[-1]
    yield from made


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
