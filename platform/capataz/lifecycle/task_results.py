"""Task results: django-celery-results' records, kept for handlers' tasks too.

``TaskResult`` and its admin know plain tasks through Celery's result backend. Whatever ends a task of a
handler records it here, in its own transaction, so that what reads them finds both kinds.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from django.conf import settings
from django_celery_results.models import TaskResult

from capataz import database, jsontext
from capataz.database import Connection
from capataz.models import Task
from capataz.sql import statement


@dataclass(frozen=True)
class Record:
    """A task that has ended, with what its row does not keep: who held it, and its traceback."""

    id: uuid.UUID
    worker_id: int | None = None
    traceback: str | None = None


def record(connection: Connection, records: Sequence[Record]) -> None:
    """Record how these tasks have ended; those that have not are left out.

    Call it in the transaction that ended them. Does nothing if CAPATAZ_TASK_RESULTS is off.
    """
    if not records or not settings.TASK_RESULTS:
        return
    columns = {
        "ids": [each.id for each in records],
        "workers": [each.worker_id for each in records],
        "tracebacks": [each.traceback for each in records],
    }
    # Not the connection's own cursor class: under Django that one binds parameters in another way.
    with psycopg.Cursor(connection) as cursor:
        cursor.execute(statement("record_results"), columns)


def tell(task_id: str, state: str, meta: Any) -> None:
    """Keep what a running task says of itself, through Django's connection, until it says more or ends.

    Raises ValueError for what is not JSON.
    """
    said = {"id": task_id, "state": state[:50], "result": jsontext.dumps(meta, limit=settings.MAX_RESULT)}
    with psycopg.Cursor(database.driver()) as cursor:
        cursor.execute(statement("tell_state"), said)


def told(task: Task) -> tuple[str, Any] | None:
    """(state, meta) that the attempt under way has told, if it has."""
    said = TaskResult.objects.filter(task_id=str(task.pk), date_done__gt=task.released_at).first()
    return said and (said.status, json.loads(said.result))


def forget(ids: Iterable[uuid.UUID]) -> None:
    """Delete the records of these tasks, through Django's connection: they are gone, or queued again."""
    TaskResult.objects.filter(task_id__in=[str(task_id) for task_id in ids]).delete()
