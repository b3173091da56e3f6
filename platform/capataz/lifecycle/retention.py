"""Retention: deleting what is past its time, and keeping the partitions of the days ahead ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from capataz.lifecycle import rollups, task_results
from capataz.models import Task, Worker
from capataz.models.worker import ALIVE
from capataz.states import State

PARTITIONED = ("capataz_attempt", "capataz_event")
DAYS_AHEAD = 3
# The advisory lock under which partitions are made and dropped.
PARTITIONS_LOCK = 0x43505A50
# Workers that ended longer ago than this are no longer listed.
KEEP_WORKERS = timedelta(days=7)
BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)
# Seconds of rest for each second of pruning: whoever claims meanwhile gets at least half of the disk.
REST = 1.0


def prune(
    *,
    succeeded: timedelta | None = None,
    dead: timedelta | None = None,
    cancelled: timedelta | None = None,
    expired: timedelta | None = None,
    batch: int = 1000,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Delete tasks that ended longer ago than their outcome is kept; returns how many of each.

    What is not given is taken from the settings. Deletes in batches of ``batch``, each its own
    transaction, rests as long as each took, and asks ``stop`` in between.
    """
    ages = {
        State.SUCCEEDED: _age(succeeded, settings.KEEP_SUCCEEDED_DAYS),
        State.DEAD: _age(dead, settings.KEEP_DEAD_DAYS),
        State.CANCELLED: _age(cancelled, settings.KEEP_CANCELLED_DAYS),
        State.EXPIRED: _age(expired, settings.KEEP_EXPIRED_DAYS),
    }
    deleted = {state.value: _prune_state(state, age, batch, stop) for state, age in ages.items()}
    Worker.objects.exclude(state__in=ALIVE).filter(stopped_at__lt=Now() - KEEP_WORKERS).delete()
    rollups.prune(settings.KEEP_ROLLUPS_DAYS)
    prepare_partitions()
    _drop_partitions(max(ages.values()))
    return deleted


def _age(given: timedelta | None, days: float) -> timedelta:
    """What was given, also if that is no time at all; else so many days."""
    return timedelta(days=days) if given is None else given


def oldest(state: State, age: timedelta, since: datetime) -> QuerySet[Task, Any]:
    """(id, when it ended) of the tasks that ended in this state longer ago than ``age`` and not before
    ``since``, the oldest first, locked."""
    ended = Task.objects.filter(state=state, finished_at__lt=Now() - age, finished_at__gte=since)
    free = ended.order_by("finished_at").select_for_update(skip_locked=True)
    return free.values_list("pk", "finished_at")


def _prune_state(state: State, age: timedelta, batch: int, stop: Callable[[], bool]) -> int:
    total, since = 0, BEFORE_ALL
    while not stop():
        began = time.monotonic()
        with transaction.atomic():
            rows = list(oldest(state, age, since)[:batch])
            ids = [pk for pk, _ in rows]
            Task.objects.filter(pk__in=ids).delete()
            task_results.forget(ids)
        total += len(ids)
        if len(ids) < batch:
            break
        # What is deleted stays in the index as long as an old snapshot is open: it is not walked over again.
        since = rows[-1][1]
        time.sleep(REST * (time.monotonic() - began))
    return total


def prepare_partitions() -> None:
    """Make the daily partitions of today and the days ahead; those that exist stay as they are."""
    for table in PARTITIONED:
        _one_at_a_time("SELECT capataz_prepare_partitions(%s, %s)", [table, DAYS_AHEAD])


def _drop_partitions(age: timedelta) -> None:
    for table in PARTITIONED:
        _one_at_a_time("SELECT capataz_drop_partitions(%s, %s * interval '1 day')", [table, age.days])


def _one_at_a_time(query: str, parameters: list[Any]) -> None:
    """Two sessions that make or drop the same partition would get in each other's way."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PARTITIONS_LOCK])
        cursor.execute(query, parameters)
