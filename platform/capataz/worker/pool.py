"""The prefork pool, telling how its children ended and shrinking only by idle ones."""

from __future__ import annotations

import logging
import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import Timer
from typing import Any

from celery.concurrency import prefork
from celery.concurrency.asynpool import AsynPool
from django.conf import settings

REMEMBERED = 1000  # exits
# Within which a child has to read what was begun to be written to it when the connection to Redis was lost.
READS_WITHIN = 5.0  # seconds

_log = logging.getLogger(__name__)


class Pool(AsynPool):
    """Celery's pool of child processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.exits: OrderedDict[int, int] = OrderedDict()
        super().__init__(*args, **kwargs)

    def process_flush_queues(self, proc: Any) -> None:
        """Called for every child that has been reaped."""
        if proc.exitcode is not None:
            self.exits[proc.pid] = proc.exitcode
            while len(self.exits) > REMEMBERED:
                self.exits.popitem(last=False)
        super().process_flush_queues(proc)

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        """Hear of this child's end. The stock method ends the worker if the end has been heard of already,
        and the connection was lost before the child was reaped."""
        if getattr(proc, "_sentinel_poll", proc) is not None:
            super()._track_child_process(proc, hub)

    def _flush_writer(self, proc: Any, writer: Any) -> None:
        """Write the rest of a job to this child. One that does not read, as a frozen one, is killed: the
        stock method waits for it with the whole event loop."""
        out_of_patience = Timer(READS_WITHIN, _kill, [proc.pid])
        out_of_patience.daemon = True
        out_of_patience.start()
        try:
            super()._flush_writer(proc, writer)
        finally:
            out_of_patience.cancel()

    def shrink(self, n: int = 1) -> None:
        """End up to ``n`` children that have neither a job accepted nor one on its way.

        The stock method ends a child whose job it has just been sent.
        """
        for process in [each for each in self._pool if self._is_idle(each)][:n]:
            self._processes -= 1
            if self._putlock:
                self._putlock.shrink()
            self._all_inqueues.discard(process.inqW_fd)  # no job may be written to it from now on
            process.terminate_controlled()
            self.on_shrink(1)

    def _is_idle(self, process: Any) -> bool:
        busy = process.inqW_fd in self._busy_workers or process.inqW_fd in self._active_writes
        starting = process in self._waiting_to_start or process.inqW_fd not in self._all_inqueues
        return not (busy or starting or self._worker_active(process))


class TaskPool(prefork.TaskPool):
    """Celery's prefork pool on our ``Pool``."""

    Pool = Pool

    at_begin: Callable[[], None] = staticmethod(lambda: None)
    """Called before the first child is asked to end, however the worker is stopped."""

    at_end: Callable[[], None] = staticmethod(lambda: None)
    """Called once the last child has ended: Celery's steps have no order among those that do not name
    each other, and what the children report has to be heard to the end."""

    def on_stop(self) -> None:
        """Wait for what runs, for the grace; then kill the children that are left.

        Those run plain tasks (the watch ends the bundles), whose deliveries go back to their queues as the
        connection closes. The stock method waits for them for ever, and for jobs that no child has accepted
        as well: the event loop that would hand them out has stopped.
        """
        self.at_begin()
        out_of_patience = Timer(settings.SHUTDOWN_GRACE + 0.5, self._kill_children)
        out_of_patience.daemon = True
        out_of_patience.start()
        if self._pool is not None:
            for job in list(self._pool._cache.values()):
                if not job.accepted():
                    job.discard()
        try:
            super().on_stop()
        finally:
            out_of_patience.cancel()
            self.at_end()

    def _kill_children(self) -> None:
        for process in list(self._pool._pool if self._pool is not None else ()):
            _log.warning("the stop kills child %d, which is still in a task", process.pid)
            _kill(process.pid)

    def on_terminate(self) -> None:
        """End the children at once."""
        self.at_begin()
        try:
            super().on_terminate()
        finally:
            self.at_end()

    def exit_of(self, pid: int) -> int | None:
        """How a reaped child ended: its exit code, negative for a signal; None if that is not known."""
        exits = self._pool.exits if self._pool is not None else {}
        code: int | None = exits.get(pid)
        return code


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
