"""The station: everything of ours inside one worker, and its threads' way into the event loop.

Only the main thread forks and talks to Celery. The ledger, the watch and the heartbeat hand it work
through ``soon``; it survives the loop's standing still and being reset.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

from celery import bootsteps, signals
from celery.exceptions import ImproperlyConfigured
from celery.worker import state as celery_state
from django.conf import settings
from django.db import connections

from capataz import handlers
from capataz.lifecycle import presence
from capataz.lifecycle.presence import Sign
from capataz.worker import child
from capataz.worker.channel import Channel, sweep
from capataz.worker.child import Wear
from capataz.worker.flower import Flower
from capataz.worker.heartbeat import Heartbeat
from capataz.worker.holding import Bundle, Ended, Ending, Held
from capataz.worker.ledger import Announcement, Callbacks, Ledger
from capataz.worker.pool import TaskPool
from capataz.worker.requests import BundleRequest, TaskRequest
from capataz.worker.timings import Timings
from capataz.worker.watch import Watch

STAMP = 0.5  # seconds between two stamps of the event loop
# After the grace, outcomes are committed and rows given back within this.
LAST_WORDS = 5.0  # seconds

_log = logging.getLogger(__name__)


class Station:
    """Joins the ledger, the watch and the heartbeat to one Celery worker."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.name: str = worker.hostname
        self.phase = "connecting"
        self._closed = False
        self.timings = Timings()
        self.flower = Flower(self)
        self._max_concurrency = int(worker.max_concurrency or worker.concurrency)
        spool = settings.CAPATAZ_DATA_DIR / "spool"
        sweep(spool)
        self._channel = Channel(max(16, 2 * self._max_concurrency), spool)
        child.attach(self._channel, Wear(worker.max_tasks_per_child, worker.max_memory_per_child))
        self._free_pipes = deque(range(len(self._channel.tokens)))
        self._waiting: deque[Bundle] = deque()
        self._requests: dict[int, TaskRequest] = {}
        self.bundles: dict[int, Bundle] = {}
        self._todo: deque[Callable[[], None]] = deque()
        self._stamp = self._heard_at = time.monotonic()
        self.watch = Watch(
            self._channel,
            self._on_ended,
            self._on_progress,
            self._on_log,
            on_running=self._on_running,
            exit_of=self._exit_of,
        )
        self.heartbeat = Heartbeat(
            self._register,
            self._sign,
            on_new_identity=self._on_new_identity,
            on_hung=self._on_hung,
            on_deaf=self._on_deaf,
            on_beat=self.watch.heard,
            processes=worker.min_concurrency,
        )
        callbacks = Callbacks(
            granted=lambda bundle: self.soon(lambda: self._start(bundle)),
            settled=self._on_settled,
            shown_running=lambda helds: self.soon(lambda: self._show_running(helds)),
            refused=lambda announcement: self.soon(announcement.acknowledge),
            stop_run=self.watch.stop_run,
        )
        self.ledger = Ledger(0, callbacks, self.watch.running)

    # Life.

    def start(self) -> None:
        """Register this worker and start the threads; the pool has not forked yet."""
        connections.close_all()  # what Django opened while it started is not for the children
        # Celery collects garbage before every fork, a tenth of a second over modules that stay anyway.
        gc.collect()
        gc.freeze()
        self.ledger.worker_id = self.heartbeat.enroll()
        os.register_at_fork(after_in_child=self._after_fork_in_child)
        for thread in (self.watch, self.ledger, self.heartbeat):
            thread.start()

    def drain(self) -> None:
        """Claim nothing more and give back at once what has not started; running tasks go on for a while."""
        if self.phase == "draining":
            return
        self.phase = "draining"
        self.ledger.draining = True
        self.watch.drain(time.monotonic() + settings.SHUTDOWN_GRACE)
        self.ledger.wake()

    def close(self) -> None:
        """The pool has ended: write down what is left, give back the rest, and go. Only once."""
        if self._closed or not self.heartbeat.worker_id:  # or it never got to the database
            return
        self._closed = True
        deadline = time.monotonic() + LAST_WORDS
        self.watch.stop()
        self.watch.join(timeout=LAST_WORDS)
        self.ledger.stop(deadline)
        self.ledger.join(timeout=LAST_WORDS + 1)
        self.heartbeat.stop()

    def connected(self, consumer: Any) -> None:
        """The consumer's event loop starts, for the first time or again after a lost connection."""
        if self.phase != "draining":
            self.phase = "running"
        if consumer.restart_count > 0:
            self.ledger.announce_anew()
        self._heard_at = time.monotonic()
        consumer.hub.call_repeatedly(STAMP, self._turn)
        self._turn()

    def disconnected(self) -> None:
        """The connection to Redis is lost and the pool is about to drop what it has not started."""
        if self.phase != "draining":
            self.phase = "connecting"
        for bundle in list(self.bundles.values()):
            job: Any = bundle.job
            if job is None or not job.accepted():
                self.watch.take_back(bundle)

    @property
    def most_children(self) -> int:
        """Children that can have work at once: the pipes were made before the first of them."""
        return len(self._channel.tokens)

    # Into the event loop.

    def soon(self, call: Callable[[], None]) -> None:
        """Do this in the main thread, as soon as the event loop turns; never raises there."""
        self._todo.append(call)
        hub = self.worker.hub
        if hub is not None:
            hub.call_soon(self._work_off)

    def _turn(self) -> None:
        self._stamp = time.monotonic()
        self._work_off()
        # billiard may miss the end of a child and replace it only when its own timer comes, after 5 s.
        if self.phase == "running" and self.worker.pool._pool is not None:
            self.worker.pool.maintain_pool()

    def _work_off(self) -> None:
        while self._todo:
            try:
                self._todo.popleft()()
            except IndexError:
                return
            except Exception:
                _log.exception("a call into the event loop failed")

    # Bundles, in the main thread.

    def announce(self, task_type: str, ids: list[Any], acknowledge: Callable[[], None]) -> None:
        """A pointer has come."""
        self._heard_at = time.monotonic()
        self.ledger.announce(Announcement(task_type, ids, lambda: self.soon(acknowledge)))

    def pass_on(self, task_type: str, ids: list[Any], acknowledge: Callable[[], None]) -> None:
        """A pointer has come to a type that nobody here knows."""
        self.ledger.pass_on(Announcement(task_type, ids, lambda: self.soon(acknowledge)))

    def _start(self, bundle: Bundle) -> None:
        self.bundles[bundle.serial] = bundle
        for held in bundle.items:
            request = self._requests[held.run] = TaskRequest(held, self)
            celery_state.task_reserved(request)
        self._waiting.append(bundle)
        self._start_waiting()
        self.flower.received(bundle)

    def _start_waiting(self) -> None:
        while self._waiting and self._free_pipes:
            bundle = self._waiting.popleft()
            bundle.pipe = self._free_pipes.popleft()
            self.watch.follow(bundle)
            startable = [held.index for held in bundle.items if not held.ended]
            self._channel.tokens[bundle.pipe].put(bundle.serial, startable)
            if self.phase == "draining":  # its claim was under way, or it waited for a pipe
                self.watch.take_back(bundle)
            self.worker.process_task(BundleRequest(bundle, self))
        if self.worker.autoscaler:
            self.worker.autoscaler.maybe_scale()

    def _on_settled(self, ended: list[Ended], bundles: list[Bundle]) -> None:
        self.soon(lambda: self._settle(ended, bundles))

    def _settle(self, ended: list[Ended], bundles: list[Bundle]) -> None:
        for each in ended:
            held = each.held
            request = self._requests.pop(held.run, None)
            if request is not None:
                celery_state.task_ready(request, successful=each.ending is Ending.SUCCEEDED)
                if held.started is not None:
                    celery_state.total_count.update({held.type: 1})
                    celery_state.all_total_count[0] += 1
            if each.ending in (Ending.SUCCEEDED, Ending.FAILED) and held.started is not None:
                self.timings.add(held.type, each.ended - held.started)
        for bundle in bundles:
            self.bundles.pop(bundle.serial, None)
            self.watch.forget(bundle)
            if bundle.pipe >= 0:
                self._free_pipes.append(bundle.pipe)
            bundle.acknowledge()
        if bundles:
            self._start_waiting()
        self.flower.ended(ended)

    def _show_running(self, helds: list[Held]) -> None:
        for held in helds:
            request = self._requests.get(held.run)
            if request is not None:
                celery_state.active_requests.add(request)
        self.flower.started(helds)

    # From the watch and the heartbeat, in their threads.

    def _on_ended(self, ended: list[Ended]) -> None:
        self.ledger.end(ended)

    def _on_running(self) -> None:
        self.ledger.wake()

    def _exit_of(self, pid: int) -> int | None:
        code: int | None = self.worker.pool.exit_of(pid)
        return code

    def _on_progress(self, held: Held, percent: int, message: str) -> None:
        self.ledger.progress(held, percent, message)

    def _on_log(self, held: Held, at: float, level: int, logger: str, message: str) -> None:
        self.ledger.log(held, at, level, logger, message)

    def _register(self, connection: Any) -> int:
        return presence.register(
            connection,
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._queues(),
            types=[handler.name for handler in handlers.registered()],
            max_concurrency=self._max_concurrency,
        )

    def _on_new_identity(self, worker_id: int) -> None:
        self.ledger.worker_id = worker_id
        for held in list(self.ledger.held.values()):
            self.watch.stop_run(held, Ending.GIVEN_BACK, "this worker was given up for dead", grace=0.0)

    def _on_hung(self) -> None:
        for held in list(self.ledger.held.values()):
            self.watch.stop_run(held, Ending.GIVEN_BACK, "its worker hung", grace=0.0)
        try:
            self.close()
        finally:
            os._exit(os.EX_SOFTWARE)

    def _on_deaf(self) -> None:
        self._heard_at = time.monotonic()
        self.worker.hub.call_soon(_lose_the_connection)

    def _sign(self) -> Sign:
        pool = self.worker.pool
        autoscaler = self.worker.autoscaler
        processes = getattr(pool, "num_processes", 0) if pool is not None and pool._pool else 0
        return Sign(
            state="draining" if self.phase == "draining" else "running",
            phase=self.phase,
            processes=processes,
            max_concurrency=autoscaler.max_concurrency if autoscaler else processes or self._max_concurrency,
            queues=self._queues(),
            claimed=len(self.ledger.held),
            running=len(self.watch.running()),
            loop_lag=round(max(0.0, time.monotonic() - self._stamp - STAMP), 3),
            quiet=self._quiet(),
            timings=self.timings.summary(),
            backends=[self.ledger.session.backend] if self.ledger.session.backend else [],
        )

    def _quiet(self) -> float:
        """For how many seconds this worker has been connected and idle and has heard of nothing."""
        if self.phase != "running" or self.ledger.held or celery_state.reserved_requests:
            return 0.0
        return time.monotonic() - self._heard_at

    def _queues(self) -> list[str]:
        return sorted(self.worker.app.amqp.queues.consume_from)

    def _after_fork_in_child(self) -> None:
        """Close our sessions in a child: through its copy, a grandchild would hold the lock of a dead
        parent. The numbers stay occupied, so that nothing else is ever written to by them."""
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (self.ledger.session.socket(), self.heartbeat.session.socket()):
            if fd is not None:
                os.dup2(null, fd)
        os.close(null)


class StationStep(bootsteps.StartStopStep):
    """Puts the station into the worker: made before the pool forks, closed when the pool has ended."""

    requires = ("celery.worker.components:Timer", "celery.worker.components:Hub")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        worker.station = None
        super().__init__(worker, **kwargs)

    def create(self, worker: Any) -> None:
        """Make the kernel objects that every child inherits."""
        if not worker.use_eventloop or not issubclass(worker.pool_cls, TaskPool):
            raise ImproperlyConfigured(
                "handlers run on the prefork pool: start the worker without -P, or with -P prefork"
            )
        import_module("capataz.worker.remote_control")
        worker.station = Station(worker)

    def start(self, worker: Any) -> None:
        """Register, and start the threads."""
        station = worker.station
        signals.worker_shutting_down.connect(lambda **_: station.drain(), weak=False)
        worker.pool.at_begin, worker.pool.at_end = station.drain, station.close
        station.start()

    def stop(self, worker: Any) -> None:
        """Say the last words, unless the pool is still there and has to end first."""
        if worker.station is not None and (worker.pool is None or worker.pool._pool is None):
            worker.station.close()

    terminate = stop


def _lose_the_connection() -> None:
    """What Celery's consumer answers with a new connection and a new subscription to every queue."""
    raise ConnectionError("no message came although tasks wait")


@signals.worker_process_init.connect
def _prepare_child(**_: Any) -> None:
    child.prepare()
