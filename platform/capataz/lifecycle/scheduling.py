"""Scheduling: submitting a task for a due time of a schedule, exactly once per due time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import crontab
from django.db import connection, transaction

from capataz import handlers
from capataz.lifecycle import submission
from capataz.models import ScheduleMark, Task

# How far the clock of beat's host may be ahead of the database's.
AHEAD = timedelta(seconds=2)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def due_time(schedule: Any, now: datetime | None = None) -> datetime:
    """The point of the schedule's grid that ``now`` (the database's clock) belongs to.

    Intervals count from 1970-01-01 UTC, so that two beats with different memories name the same point. A
    crontab fires at whole minutes; beat's clock may be ahead of the database's by up to ``AHEAD``.
    """
    moment = now or database_now()
    if isinstance(schedule, crontab):
        step = timedelta(minutes=1)
        moment += AHEAD
    else:
        step = _interval(schedule)
    return _EPOCH + (moment - _EPOCH) // step * step


def fire(
    name: str, due: datetime, task_type: str, args: Any, kwargs: Any, options: Mapping[str, Any]
) -> Task | None:
    """Submit the task of schedule ``name`` for its due time; None if that has been done already.

    One transaction: the mark moves on and the task exists, or neither.
    """
    with transaction.atomic():
        ScheduleMark.objects.get_or_create(name=name, defaults={"last_due": _EPOCH})
        if not ScheduleMark.objects.filter(name=name, last_due__lt=due).update(last_due=due):
            return None
        return submission.from_celery(handlers.find(task_type), args, kwargs, options)


def database_now() -> datetime:
    """The time by the database's clock, which all beats share."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        [moment] = cursor.fetchone()
    return moment  # type: ignore[no-any-return]


def _interval(schedule: Any) -> timedelta:
    """The length of an interval schedule; a schedule of another kind fires by the second."""
    every = getattr(schedule, "run_every", None)
    return every if isinstance(every, timedelta) and every > timedelta() else timedelta(seconds=1)
