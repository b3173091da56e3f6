"""Retention: deleting what is past its time, and keeping the partitions of the days ahead ready."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from capataz.lifecycle import archive, rollups, task_results
from capataz.models import Dependency, Pruned, Task, Worker, Workflow
from capataz.models.worker import ALIVE
from capataz.sql import statement
from capataz.states import State

HISTORY = ("capataz_attempt", "capataz_event")
PARTITIONED = (*HISTORY, "capataz_logline")
DROP_PARTITIONS = "SELECT capataz_drop_partitions(%s, %s * interval '1 day')"
DAYS_AHEAD = 3
# The advisory lock under which partitions are made and dropped.
PARTITIONS_LOCK = 0x43505A50
# Workers that ended longer ago than this are no longer listed.
KEEP_WORKERS = timedelta(days=7)
# So many tasks that are past a retention of their own are looked up at once.
OWN_AT_ONCE = 10_000
BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)
# Seconds of rest for each second of pruning: whoever claims meanwhile gets at least half of the disk.
REST = 1.0
# Milliseconds to wait for the lock on a whole table. All who finish tasks queue up behind whoever waits for
# it, and a dump holds it off for as long as it runs; what was not got is got the next time.
TABLE_PATIENCE = 500

# No part of an unfinished workflow, and no parent whose result a task may yet ask for. As in archive.sql.
_NOT_NEEDED = Q(workflow_id__isnull=True) | ~(
    Exists(Workflow.objects.filter(pk=OuterRef("workflow_id"), finished_at__isnull=True))
    | Exists(
        Dependency.objects.filter(
            Exists(Task.objects.filter(pk=OuterRef("child_id")).exclude(state=State.SUCCEEDED)),
            parent_id=OuterRef("pk"),
        )
    )
)
# An ended workflow without tasks is kept for so long: somebody may still ask how it went.
KEEP_EMPTY_WORKFLOWS = timedelta(days=1)

_log = logging.getLogger(__name__)


def prune(
    *,
    succeeded: timedelta | None = None,
    dead: timedelta | None = None,
    cancelled: timedelta | None = None,
    expired: timedelta | None = None,
    batch: int = 1000,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Delete tasks that are past a retention of their own, or else ended longer ago than their outcome is
    kept; returns how many of each.

    What is not given is taken from the settings. Deletes in batches of ``batch``, each its own
    transaction, rests as long as each took, and asks ``stop`` in between. Tasks of the outcomes in ARCHIVED
    are in the archive before they are deleted: if it cannot be written, they stay, and OSError is raised once
    everything else is done.
    """
    prepare_partitions()  # first: without them, what everybody writes could not be dropped by the day
    ages = {
        State.SUCCEEDED: _age(succeeded, settings.KEEP_SUCCEEDED_DAYS),
        State.DEAD: _age(dead, settings.KEEP_DEAD_DAYS),
        State.CANCELLED: _age(cancelled, settings.KEEP_CANCELLED_DAYS),
        State.EXPIRED: _age(expired, settings.KEEP_EXPIRED_DAYS),
    }
    deleted: dict[str, int] = {}
    unwritable: OSError | None = None
    try:
        own = _prune_own(batch, stop)
    except OSError as error:
        own, unwritable = {}, error
    for state, age in ages.items():
        try:
            deleted[state.value] = _prune_state(state, age, batch, stop)
        except OSError as error:
            unwritable = error
    for outcome, count in own.items():
        deleted[outcome] = deleted.get(outcome, 0) + count
    Pruned.objects.filter(pruned_at__lt=Now() - max(ages.values())).delete()
    Worker.objects.exclude(state__in=ALIVE).filter(stopped_at__lt=Now() - KEEP_WORKERS).delete()
    _prune_workflows()
    rollups.prune(settings.KEEP_ROLLUPS_DAYS)
    _drop_partitions(max(ages.values()))
    _drop_log_lines(timedelta(days=settings.KEEP_TASK_LOGS_DAYS))
    if unwritable is not None:
        raise unwritable
    archive.clear()
    return deleted


def _prune_state(state: State, age: timedelta, batch: int, stop: Callable[[], bool]) -> int:
    delete = _archive_batch if state in settings.ARCHIVED else _delete_batch
    total = 0
    # What is deleted stays in the index as long as an old snapshot is open: it is not walked over again.
    since: datetime | None = BEFORE_ALL
    while since is not None and not stop():
        began = time.monotonic()
        deleted, since = delete(state, age, since, batch)
        total += deleted
        if since is not None:
            time.sleep(REST * (time.monotonic() - began))
    return total


def _prune_own(batch: int, stop: Callable[[], bool]) -> dict[str, int]:
    """Delete what is past a retention of its own; returns how many of each outcome."""
    deleted: dict[str, int] = {}
    more = True
    while more:
        with connection.cursor() as cursor:
            cursor.execute(statement("own_retention"), {"most": OWN_AT_ONCE})
            rows = cursor.fetchall()
        found: dict[str, list[tuple[uuid.UUID, datetime]]] = {}
        for task_id, state, finished_at in rows:
            found.setdefault(state, []).append((task_id, finished_at))
        before = sum(deleted.values())
        for state, ended in found.items():
            for batch_of in _batches(ended, batch):
                if stop():
                    return deleted
                began = time.monotonic()
                deleted[state] = deleted.get(state, 0) + _delete_ended(State(state), batch_of)
                time.sleep(REST * (time.monotonic() - began))
        # Rows that somebody has locked are left for the next time.
        more = len(rows) == OWN_AT_ONCE and sum(deleted.values()) > before
    return deleted


def _batches(rows: list[Any], size: int) -> Iterator[list[Any]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _delete_ended(state: State, ended: list[tuple[uuid.UUID, datetime]]) -> int:
    """Delete these tasks, as far as they are still as they had ended at these times."""
    if state in settings.ARCHIVED:
        ended = list(archive.write_these(state, [task_id for task_id, _ in ended]).items())
    return _delete_as_seen(state, dict(ended))


def _delete_as_seen(state: State, seen: dict[uuid.UUID, datetime]) -> int:
    """Delete what is still as it was seen: somebody may have had a task retried meanwhile."""
    with transaction.atomic():
        as_seen = Task.objects.filter(pk__in=seen, state=state).select_for_update(skip_locked=True)
        found = as_seen.order_by("pk").values_list("pk", "finished_at")
        ids = [task_id for task_id, finished_at in found if finished_at == seen[task_id]]
        _delete(ids)
    return len(ids)


def _age(given: timedelta | None, days: float) -> timedelta:
    """What was given, also if that is no time at all; else so many days."""
    return timedelta(days=days) if given is None else given


def oldest(state: State, age: timedelta, since: datetime) -> QuerySet[Task, Any]:
    """(id, when it ended) of the tasks that ended in this state longer ago than ``age`` and not before
    ``since``, the oldest first, locked."""
    ended = Task.objects.filter(_NOT_NEEDED, state=state, finished_at__lt=Now() - age, finished_at__gte=since)
    ended = ended.filter(**{f"keep__{state.value}__age__isnull": True})  # the others have an age of their own
    free = ended.order_by("finished_at").select_for_update(skip_locked=True)
    return free.values_list("pk", "finished_at")


def _delete_batch(state: State, age: timedelta, since: datetime, batch: int) -> tuple[int, datetime | None]:
    """How many were deleted, and when the last of them had ended; None for that if there are no more."""
    with transaction.atomic():
        rows = list(oldest(state, age, since)[:batch])
        _delete([pk for pk, _ in rows])
    return len(rows), rows[-1][1] if len(rows) == batch else None


def _archive_batch(state: State, age: timedelta, since: datetime, batch: int) -> tuple[int, datetime | None]:
    """Write, then delete what is still as it was written."""
    written = archive.write(state, age, since, batch)
    deleted = _delete_as_seen(state, written)
    # A batch of which nothing could be deleted would be written again and again.
    return deleted, max(written.values()) if len(written) == batch and deleted else None


def _delete(ids: list[uuid.UUID]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement("note_pruned"), {"ids": ids})
    Task.objects.filter(pk__in=ids).delete()
    Dependency.objects.filter(Q(parent_id__in=ids) | Q(child_id__in=ids)).delete()
    task_results.forget(ids)


def _prune_workflows() -> None:
    ended = Workflow.objects.filter(finished_at__lt=Now() - KEEP_EMPTY_WORKFLOWS)
    ended.exclude(Exists(Task.objects.filter(workflow_id=OuterRef("pk")))).delete()


def prepare_partitions() -> None:
    """Make the daily partitions of today and the days ahead; those that exist stay as they are."""
    for table in PARTITIONED:
        _one_at_a_time("SELECT capataz_prepare_partitions(%s, %s)", [table, DAYS_AHEAD])


def _drop_partitions(age: timedelta) -> None:
    """Drop the days that no outcome is kept for, and that no task still to be archived has lived in."""
    # Not the first by id: a client may have chosen it.
    to_archive = Task.objects.filter(state__in=settings.ARCHIVED)
    oldest = to_archive.aggregate(age=Max(Now() - F("created_at")))["age"]
    age = max(age, oldest or age)
    for table in HISTORY:
        _one_at_a_time(DROP_PARTITIONS, [table, age.days])


def _drop_log_lines(age: timedelta) -> None:
    _one_at_a_time(DROP_PARTITIONS, ["capataz_logline", age.days])


def _one_at_a_time(query: str, parameters: list[Any]) -> None:
    """Two sessions that make or drop the same partition would get in each other's way."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PARTITIONS_LOCK])
            cursor.execute("SHOW lock_timeout")
            [patience] = cursor.fetchone()
            cursor.execute(f"SET LOCAL lock_timeout = {TABLE_PATIENCE}")
            cursor.execute(query, parameters)
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [patience])
    except OperationalError as error:
        if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
            raise
        _log.warning("the partitions are left as they are for now: %s", str(error).strip())
