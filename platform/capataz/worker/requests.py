"""How our work looks to Celery: bundles to its pool, single tasks to ``inspect`` and to Flower."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from billiard.exceptions import Terminated, WorkerLostError
from celery import current_app

from capataz.worker import child
from capataz.worker.holding import Bundle, Ending, Held

if TYPE_CHECKING:
    from capataz.worker.station import Station


class BundleRequest:
    """A bundle on its way into the pool, with the few methods that Celery's worker calls."""

    def __init__(self, bundle: Bundle, station: Station) -> None:
        self.bundle = bundle
        self._station = station

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Hand the bundle to a child."""
        bundle = self.bundle
        items = [_item(held) for held in bundle.items]
        bundle.job = pool.apply_async(
            child.run_bundle,
            args=(bundle.pipe, bundle.serial, bundle.type, items),
            error_callback=self._on_error,
            soft_timeout=None,
            timeout=None,
            correlation_id=f"bundle-{bundle.serial}",
        )
        return bundle.job

    def _on_error(self, info: Any) -> None:
        error = info.exception if hasattr(info, "exception") else info
        died = isinstance(error, (WorkerLostError, Terminated))
        self._station.watch.abandon(self.bundle, f"{type(error).__name__}: {error}", child_died=died)


class TaskRequest:
    """One held task, as ``inspect active`` and remote control see it."""

    acknowledged = False
    eta = None
    expires = None

    def __init__(self, held: Held, station: Station) -> None:
        self.held = held
        self.id = str(held.id)
        self.name = held.type
        self.task_id = self.id
        self._station = station

    @property
    def task(self) -> Any:
        """The handler's Celery task, which Celery asks how it acknowledges."""
        return current_app.tasks[self.name]

    @property
    def worker_pid(self) -> int | None:
        """The child that runs it."""
        return self.held.bundle.pid

    @property
    def correlation_id(self) -> str:
        """Celery's other name for the id."""
        return self.id

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What ``inspect`` shows; the payload stays in PostgreSQL."""
        held = self.held
        started = None if held.started is None else time.time() - (time.monotonic() - held.started)
        return {
            "id": self.id,
            "name": self.name,
            "args": [],
            "kwargs": {},
            "type": self.name,
            "hostname": self._station.name,
            "time_start": started,
            "acknowledged": False,
            "delivery_info": {"routing_key": held.handler.queue},
            "worker_pid": self.worker_pid,
        }

    def revoked(self) -> bool:
        """Whether it is to be dropped unstarted; cancelling goes through the row."""
        return False

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Stop this task now, as ``control revoke --terminate`` and ``control terminate`` ask."""
        self._station.watch.stop_run(self.held, Ending.CANCELLED, "terminated by remote control", grace=0.0)

    def cancel(self, pool: Any, signal: Any = None, **_: Any) -> None:
        """Never on a lost connection: the row, not the message, grants the run."""


def _item(held: Held) -> tuple[object, ...]:
    """What a child is told of one task."""
    return (
        held.id.bytes,
        held.payload,
        held.attempts + 1,
        held.starts,
        held.soft_time_limit,
        held.in_workflow,
    )
