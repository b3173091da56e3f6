"""The faults. Each is injected, held for a while, and healed; none leaves anything behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from capataz import pointer
from ops.chaos import witness
from ops.chaos.host import Host
from ops.chaos.target import ChaosError, Target, children_of, wait_until

BACK_WITHIN = 90.0  # seconds for a server to be there again
BUSY_WITHIN = 10.0  # seconds for a worker to have something to do


@dataclass
class Injection:
    """One fault that was injected. Times are CLOCK_MONOTONIC.

    ``victims`` are pids, of workers or of their children, whose executions were cut short at ``began``.
    ``note`` says how it was injected, or why it was not.
    """

    fault: str
    began: float = field(default_factory=time.monotonic)
    healed: float = 0.0
    victims: list[int] = field(default_factory=list)
    injected: bool = True
    overlapped: bool = False  # by another one: then nobody can say which of them cost the time
    note: str = ""


class NotPossible(Exception):
    """This fault cannot be injected here; the text says why."""


@dataclass
class Scene:
    """What a fault can reach."""

    target: Target
    host: Host | None
    random: random.Random

    def workers(self) -> list[int]:
        """The parents of all workers, also of that on a host of its own."""
        return [*self.target.workers(), *([self.host.pid] if self.host else [])]

    def worker(self) -> int:
        """Some worker's parent, of those that run something if any does within a while."""
        self.wait_for_work(*self.workers())
        alive = self.workers()
        busy = {run.worker for run in self._running()} & {*alive}
        return self.random.choice(sorted(busy) or alive)

    def wait_for_work(self, *workers: int) -> None:
        """Until one of these workers runs something, so that there is something to cut short."""
        wait_until(lambda: {run.worker for run in self._running()} & {*workers}, BUSY_WITHIN, every=0.2)

    def child(self) -> int:
        """Some child of some worker, of those that run something if any does within a while.

        Raises NotPossible if there is none just then.
        """
        self.wait_for_work(*self.workers())
        children = [child for worker in self.workers() for child in children_of(worker)]
        if not children:
            raise NotPossible("no worker had a child just then")
        busy = {run.child for run in self._running()} & {*children}
        return self.random.choice(sorted(busy) or children)

    def _running(self) -> list[witness.Run]:
        now = time.monotonic()
        return [run for run in witness.read(self.target.home) if run.lasted_over(now)]

    def far_host(self, need: str) -> Host:
        """The worker on a host of its own. Raises NotPossible if it lacks what the fault needs."""
        if self.host is None:
            raise NotPossible("the run has no worker on a host of its own")
        if need in self.host.lacks:
            raise NotPossible(self.host.lacks[need])
        return self.host


Fault = Callable[[Scene, Injection], None]
FAULTS: dict[str, Fault] = {}
# By what cuts an execution short, the longest time to its next start that we stand for, in seconds.
PROMISES = {"child": 2.0, "worker": 8.0, "partition": 25.0, "redis": 15.0}
KINDS: dict[str, str] = {}


def fault(name: str, kind: str = "") -> Callable[[Fault], Fault]:
    """Register a fault; ``kind`` names the promise about how soon its victims run again."""

    def register(inject: Fault) -> Fault:
        FAULTS[name] = inject
        if kind:
            KINDS[name] = kind
        return inject

    return register


# --- Processes ----------------------------------------------------------------------------------------


@fault("kill-worker", "worker")
def _kill_worker(scene: Scene, injection: Injection) -> None:
    """SIGKILL to a worker's parent."""
    victim = scene.worker()
    injection.began, injection.victims = time.monotonic(), [victim]
    _signal(victim, signal.SIGKILL)


@fault("kill-child", "child")
def _kill_child(scene: Scene, injection: Injection) -> None:
    """SIGKILL to a pool child."""
    victim = scene.child()
    injection.began, injection.victims = time.monotonic(), [victim]
    _signal(victim, signal.SIGKILL)


def _killing(name: str) -> Fault:
    def inject(scene: Scene, injection: Injection) -> None:
        _signal(scene.target.pid(name), signal.SIGKILL)

    return inject


def _freezing(name: str, seconds: float) -> Fault:
    def inject(scene: Scene, injection: Injection) -> None:
        _freeze([scene.target.pid(name)], seconds)

    return inject


for _name in ("dispatcher", "beat", "web"):
    fault(f"kill-{_name}")(_killing(_name))
    fault(f"freeze-{_name}")(_freezing(_name, 8))


@fault("stop-worker")
def _stop_worker(scene: Scene, injection: Injection) -> None:
    """SIGTERM to a worker's parent, as a deploy does."""
    _signal(scene.random.choice(scene.target.workers()), signal.SIGTERM)
    time.sleep(10)


@fault("freeze-worker-briefly")
def _freeze_worker_briefly(scene: Scene, injection: Injection) -> None:
    """SIGSTOP to a worker's parent, and SIGCONT before anybody takes it for dead."""
    _freeze([scene.random.choice(scene.workers())], 5)


@fault("freeze-worker-family", "partition")
def _freeze_worker_family(scene: Scene, injection: Injection) -> None:
    """SIGSTOP to a worker and all its children, until others have taken over; then it comes back."""
    victim = scene.worker()
    injection.began, injection.victims = time.monotonic(), [victim]
    _freeze([victim, *children_of(victim)], 30)


@fault("freeze-child")
def _freeze_child(scene: Scene, injection: Injection) -> None:
    """SIGSTOP to a pool child."""
    _freeze([scene.child()], 6)


# --- Redis --------------------------------------------------------------------------------------------


@fault("kill-redis", "redis")
def _kill_redis(scene: Scene, injection: Injection) -> None:
    """SIGKILL to Redis; the supervisor starts it again."""
    _restart_server(scene, "redis", signal.SIGKILL, lambda: scene.target.redis().ping())


@fault("restart-redis", "redis")
def _restart_redis(scene: Scene, injection: Injection) -> None:
    """SIGTERM to Redis."""
    _restart_server(scene, "redis", signal.SIGTERM, lambda: scene.target.redis().ping())


@fault("flush-redis", "redis")
def _flush_redis(scene: Scene, injection: Injection) -> None:
    """FLUSHALL."""
    scene.target.redis().flushall()


@fault("pause-redis", "redis")
def _pause_redis(scene: Scene, injection: Injection) -> None:
    """Redis answers nobody for ten seconds."""
    scene.target.redis().execute_command("CLIENT", "PAUSE", 10_000, "ALL")
    time.sleep(10)


@fault("freeze-redis", "redis")
def _freeze_redis(scene: Scene, injection: Injection) -> None:
    """SIGSTOP to Redis for fifteen seconds: connections stay open and nothing comes."""
    _freeze([scene.target.pid("redis")], 15)


@fault("redis-out-of-memory", "redis")
def _redis_out_of_memory(scene: Scene, injection: Injection) -> None:
    """Redis refuses every write with OOM."""
    client = scene.target.redis()
    client.config_set("maxmemory", 1)
    try:
        time.sleep(10)
    finally:
        client.config_set("maxmemory", 0)


@fault("redis-full-disk", "redis")
def _redis_full_disk(scene: Scene, injection: Injection) -> None:
    """Redis cannot write its append-only file, and refuses every write with MISCONF."""
    with _full_disk(scene, "redis"):
        client = scene.target.redis()

        def is_refused() -> bool:
            with suppress(redis.ResponseError):
                client.set("chaos:fill", os.urandom(256 * 1024))
                return False
            return True

        if not wait_until(is_refused, 15):
            raise NotPossible("Redis went on writing")
        time.sleep(10)
    wait_until(lambda: scene.target.redis().delete("chaos:fill") is not None, BACK_WITHIN)


# --- PostgreSQL ---------------------------------------------------------------------------------------


def _restarting_postgres(number: signal.Signals) -> Fault:
    def inject(scene: Scene, injection: Injection) -> None:
        _restart_server(scene, "postgres", number, lambda: scene.target.database().close() is None)

    return inject


fault("restart-postgres-fast")(_restarting_postgres(signal.SIGINT))
fault("restart-postgres-immediate")(_restarting_postgres(signal.SIGQUIT))


@fault("kill-postgres-backend")
def _kill_postgres_backend(scene: Scene, injection: Injection) -> None:
    """SIGKILL to one backend: PostgreSQL ends them all and recovers."""
    backends = children_of(scene.target.pid("postgres"))
    names = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in backends if psutil.pid_exists(pid)}
    clients = [pid for pid, name in names.items() if "127.0.0.1" in name or "[local]" in name]
    if not clients:
        raise NotPossible("no backend was found")
    _signal(scene.random.choice(clients), signal.SIGKILL)
    time.sleep(1)
    wait_until(lambda: scene.target.database().close() is None, BACK_WITHIN)


@fault("terminate-backends")
def _terminate_backends(scene: Scene, injection: Injection) -> None:
    """pg_terminate_backend for every session but ours."""
    with scene.target.database() as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


@fault("lock-table")
def _lock_table(scene: Scene, injection: Injection) -> None:
    """The table of tasks is locked for thirty seconds."""
    with scene.target.database() as session, session.transaction():
        session.execute("LOCK TABLE capataz_task IN ACCESS EXCLUSIVE MODE")
        time.sleep(30)


@fault("postgres-out-of-connections")
def _out_of_connections(scene: Scene, injection: Injection) -> None:
    """Every connection that PostgreSQL allows is taken, for ten seconds."""
    with ExitStack() as taken:
        with suppress(psycopg.OperationalError):
            for _ in range(2000):
                taken.enter_context(scene.target.database())
        time.sleep(10)


@fault("postgres-full-disk")
def _postgres_full_disk(scene: Scene, injection: Injection) -> None:
    """PostgreSQL cannot write, and stops as it must; then there is room again."""
    with _full_disk(scene, "postgres"):
        time.sleep(15)
    wait_until(lambda: scene.target.database().close() is None, BACK_WITHIN)


# --- Messages -----------------------------------------------------------------------------------------


@fault("forged-messages")
def _forged_messages(scene: Scene, injection: Injection) -> None:
    """Messages that nobody of ours has sent: for tasks that exist, that do not, and no messages at all."""
    with scene.target.database() as session:
        rows = session.execute("SELECT id FROM capataz_task ORDER BY random() LIMIT 200").fetchall()
    known = [task_id for [task_id] in rows]
    pipeline = scene.target.redis().pipeline(transaction=False)
    for number in range(1000):
        ids = [scene.random.choice(known)] if known and number % 2 else [uuid.uuid4()]
        pipeline.lpush("default", pointer.encode("chaos.work", "default", 0, ids))
    for junk in (b"", b"\xff\xfe", b"[]", b"{}", b'{"headers": 1}', b'{"body": null}', b"[" * 50_000):
        pipeline.rpush("default", junk)
    pipeline.execute()


@fault("duplicate-messages")
def _duplicate_messages(scene: Scene, injection: Injection) -> None:
    """Every message that lies in Redis, twenty times more."""
    client = scene.target.redis()
    for key in client.scan_iter("default*", _type="list"):
        for message in client.lrange(key, 0, 200):
            client.rpush(key, *[message] * 20)


# --- A host of its own --------------------------------------------------------------------------------


@fault("partition", "partition")
def _partition(scene: Scene, injection: Injection) -> None:
    """The worker's host is cut off for thirty seconds, without a word to either side."""
    host = scene.far_host("")
    scene.wait_for_work(host.pid)
    injection.began, injection.victims = time.monotonic(), [host.pid]
    if "network" in host.lacks:
        injection.note = f"by a relay that stands still: {host.lacks['network']}"
    host.unplug()
    try:
        time.sleep(30)
    finally:
        host.plug_in()


@fault("packet-loss")
def _packet_loss(scene: Scene, injection: Injection) -> None:
    """Three of ten packets to and from the worker's host are lost, for thirty seconds."""
    host = scene.far_host("packet-loss")
    host.lose_packets(30)
    try:
        time.sleep(30)
    finally:
        host.lose_packets(0)


@fault("clock-jump")
def _clock_jump(scene: Scene, injection: Injection) -> None:
    """The worker's clock is an hour fast, then an hour slow, then right again."""
    host = scene.far_host("clock")
    try:
        for offset in (3600, -3600):
            host.set_clock(offset)
            time.sleep(8)
    finally:
        host.set_clock(0)


# --- How ----------------------------------------------------------------------------------------------


def inject(name: str, scene: Scene) -> Injection:
    """Inject this fault and heal it; never raises."""
    injection = Injection(name)
    try:
        FAULTS[name](scene, injection)
    except NotPossible as error:
        injection.injected, injection.note = False, str(error)
    except (ChaosError, OSError, psutil.Error, psycopg.Error, redis.RedisError) as error:
        injection.injected, injection.note = False, f"{type(error).__name__}: {error}"[:300]
    injection.healed = time.monotonic()
    return injection


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _freeze(pids: list[int], seconds: float) -> None:
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        for pid in reversed(pids):
            _signal(pid, signal.SIGCONT)


def _restart_server(scene: Scene, name: str, number: signal.Signals, answers: Callable[[], Any]) -> None:
    before = scene.target.pid(name)
    _signal(before, number)
    if not wait_until(lambda: scene.target.pid(name) != before and answers(), BACK_WITHIN):
        raise ChaosError(f"{name} did not come back")


@contextmanager
def _full_disk(scene: Scene, name: str) -> Iterator[None]:
    disk = scene.target.disks.get(name)
    if disk is None:
        raise NotPossible("it needs a platform that this run starts, and the right to mount a small disk")
    filler = disk / "chaos-filler"
    _fill(filler)
    try:
        yield
    finally:
        filler.unlink()


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1024 * 1024)):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(512)):
            pass
