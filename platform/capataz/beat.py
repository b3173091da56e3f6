"""Beat: django-celery-beat's schedules, each due time fired once however many beats run."""

from __future__ import annotations

from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler

from capataz import handlers
from capataz.lifecycle import scheduling


class Scheduler(DatabaseScheduler):
    """Submits a handler's task in the transaction that marks its due time; plain tasks go as ever."""

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Fire one schedule."""
        if not handlers.is_registered(entry.task):
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        due = scheduling.due_time(entry.schedule)
        task = scheduling.fire(entry.name, due, entry.task, entry.args, entry.kwargs, entry.options)
        if advance:
            self.reserve(entry)
        return None if task is None else self.app.AsyncResult(str(task.id))
