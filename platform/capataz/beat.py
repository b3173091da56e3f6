"""Beat: django-celery-beat's schedules, each due time fired once however many beats run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError, connection
from django_celery_beat.schedulers import DatabaseScheduler

from capataz import handlers
from capataz.lifecycle import scheduling

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Scheduler(DatabaseScheduler):
    """Submits a handler's task in the transaction that marks its due time; plain tasks go as ever."""

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Fire one schedule."""
        if not handlers.is_registered(entry.task):
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        due = _persistently(lambda: scheduling.due_time(entry.schedule))
        task = _persistently(
            lambda: scheduling.fire(entry.name, due, entry.task, entry.args, entry.kwargs, entry.options)
        )
        if advance:
            self.reserve(entry)
        return None if task is None else self.app.AsyncResult(str(task.id))


def _persistently(call: Callable[[], Result]) -> Result:
    """Call until the database answers: what beat does not submit now is not due again for a day, say."""
    while True:
        try:
            return call()
        except (OperationalError, InterfaceError) as error:
            _log.warning("a schedule waits for the database: %s", error)
            connection.close()
            time.sleep(1)
