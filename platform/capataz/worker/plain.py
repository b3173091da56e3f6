"""Plain Celery tasks: as in any Celery project, with late acknowledgement and a short visibility timeout."""

from __future__ import annotations

import time
from typing import Any

from celery import bootsteps
from celery.contrib.django.task import DjangoTask


class PlainTask(DjangoTask):
    """The base of ``@shared_task``: time limits for those that declare none."""

    abstract = True
    soft_time_limit: float | None = 3300  # seconds
    time_limit: float | None = 3600  # seconds


class VisibilityRefresh(bootsteps.StartStopStep):
    """Keeps the deliveries of this worker invisible to others for as long as it lives.

    That is what lets the visibility timeout be short: only a dead worker's deliveries ever reach it.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._timer: Any = None
        super().__init__(consumer, **kwargs)

    def start(self, consumer: Any) -> None:
        """Refresh three times per visibility timeout; runs again after every reconnect."""
        timeout = consumer.task_consumer.channel.visibility_timeout
        self._timer = consumer.timer.call_repeatedly(max(1.0, timeout / 3), self._refresh, (consumer,))

    def stop(self, consumer: Any) -> None:
        """Refresh no more."""
        if self._timer is not None:
            consumer.timer.cancel(self._timer)
            self._timer = None

    shutdown = stop

    def _refresh(self, consumer: Any) -> None:
        channel = consumer.task_consumer.channel
        tags = channel.qos.plain_deliveries()
        if not tags:
            return
        now = time.time()
        try:
            with channel.conn_or_acquire() as client:
                # XX: what has been acknowledged meanwhile must not come back.
                client.zadd(channel.unacked_index_key, dict.fromkeys(tags, now), xx=True)
        except consumer.connection_errors:
            pass  # the consumer finds out by itself and reconnects
