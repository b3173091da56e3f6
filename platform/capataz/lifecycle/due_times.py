"""Due times: the points of time at which a schedule submits its task. Every beat names the same ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from heapq import merge
from itertools import count, groupby, islice, tee
from typing import Any

from celery.schedules import crontab
from celery.schedules import schedule as interval
from cronsim import CronSim
from django_celery_beat.clockedschedule import clocked

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unschedulable(ValueError):
    """A schedule that has no due times, and why."""


def next_due(schedule: Any, after: datetime, *, anchor: datetime = EPOCH) -> datetime | None:
    """The first due time later than ``after``; None if there is none.

    An interval's due times are ``anchor`` and every whole interval from there, whenever it last ran. A
    crontab's are those of Debian's cron in the schedule's own time zone: a fixed time that the clock leaps
    over is due at the end of the gap, and one that comes twice is due the first time; unlike there, the day
    of the month and the day of the week have to fit both. A clocked schedule has one.

    Raises Unschedulable for a schedule of another kind.
    """
    if isinstance(schedule, crontab):
        return _next_of_crontab(_fields(schedule), schedule.tz, after)
    return next(_forward(schedule, after, anchor), None)


def latest_dues(
    schedule: Any, after: datetime, until: datetime, *, most: int, anchor: datetime = EPOCH
) -> list[datetime]:
    """The due times later than ``after`` and not later than ``until``, oldest first: the latest ``most``."""
    newest_first = (due for due in _backward(schedule, until, anchor) if due <= until)
    found: list[datetime] = []
    for due in islice(newest_first, most):
        if due <= after:
            break
        found.append(due)
    return found[::-1]


# Thousands of schedules may be due at the same times.
@lru_cache(maxsize=1024)
def _next_of_crontab(fields: tuple[str, ...], zone: tzinfo, after: datetime) -> datetime | None:
    return next((due for due in _crontab(fields, zone, after, reverse=False) if due > after), None)


def _forward(schedule: Any, after: datetime, anchor: datetime) -> Iterator[datetime]:
    if isinstance(schedule, clocked):
        return iter([when] if (when := _moment(schedule)) > after else [])
    every = _every(schedule)
    return _steps(anchor + ((after - anchor) // every + 1) * every, every)


def _backward(schedule: Any, until: datetime, anchor: datetime) -> Iterator[datetime]:
    if isinstance(schedule, crontab):
        # Reversed, what is due at the very moment would be left out.
        return _crontab(_fields(schedule), schedule.tz, until + timedelta(seconds=1), reverse=True)
    if isinstance(schedule, clocked):
        return iter([_moment(schedule)])
    every = _every(schedule)
    return _steps(anchor + (until - anchor) // every * every, -every)


def _steps(start: datetime, step: timedelta) -> Iterator[datetime]:
    while True:
        yield start
        start += step


def _every(schedule: Any) -> timedelta:
    if not isinstance(schedule, interval) or schedule.run_every <= timedelta():
        raise Unschedulable(f"only intervals, crontabs and clocked times can be scheduled, not {schedule!r}")
    every: timedelta = schedule.run_every
    return every


def _moment(schedule: clocked) -> datetime:
    when: datetime = schedule.clocked_time
    return when


def _fields(schedule: crontab) -> tuple[str, ...]:
    """The minute, hour, day of the month, month and day of the week of a cron expression."""
    return (
        _field(schedule._orig_minute, schedule.minute, 60),
        _field(schedule._orig_hour, schedule.hour, 24),
        _field(schedule._orig_day_of_month, schedule.day_of_month, 31),
        _field(schedule._orig_month_of_year, schedule.month_of_year, 12),
        _field(schedule._orig_day_of_week, schedule.day_of_week, 7),
    )


def _crontab(fields: tuple[str, ...], zone: tzinfo, moment: datetime, *, reverse: bool) -> Iterator[datetime]:
    """The due times from about ``moment`` on: cronsim does the calendar, the rest is what clocks do to it."""
    local = moment.astimezone(zone)
    # Within an hour that comes twice, what is later may show an earlier time.
    repeated = max(_offset(local, fold=0) - _offset(local, fold=1), timedelta())
    shown = local.replace(tzinfo=None)
    times = CronSim(" ".join(fields), shown + repeated if reverse else shown - repeated, reverse=reverse)
    # cron takes "the 13th or a Friday" where Celery means "the 13th that is a Friday".
    times.day_and = True
    if any(field.startswith("*") for field in fields[:2]):
        first, second = tee(times)
        dues: Iterator[datetime] = merge(
            _each_time(first, zone, fold=0), _each_time(second, zone, fold=1), reverse=reverse
        )
    else:
        dues = _once(times, zone)
    return (due for due, _ in groupby(dues))


def _offset(local: datetime, *, fold: int) -> timedelta:
    offset = local.replace(fold=fold).utcoffset()
    assert offset is not None
    return offset


def _each_time(times: Iterator[datetime], zone: tzinfo, *, fold: int) -> Iterator[datetime]:
    """When clocks show these times; of two such moments the one that ``fold`` names."""
    return (shown.replace(tzinfo=zone, fold=fold).astimezone(UTC) for shown in times if _exists(shown, zone))


def _once(times: Iterator[datetime], zone: tzinfo) -> Iterator[datetime]:
    """When clocks show these times first, or have leapt over them."""
    for shown in times:
        minutes = (shown + timedelta(minutes=each) for each in count())
        existing = next(each for each in minutes if _exists(each, zone))
        yield existing.replace(tzinfo=zone).astimezone(UTC)


def _exists(shown: datetime, zone: tzinfo) -> bool:
    return shown.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) == shown


def _field(written: Any, values: set[int], size: int) -> str:
    """A field of a cron expression. A star at its front says that it follows the clock over its changes."""
    if len(values) == size:
        return "*"
    if re.fullmatch(r"\*/[0-9]+", str(written)):
        return str(written)
    return ",".join(str(value) for value in sorted(values))
