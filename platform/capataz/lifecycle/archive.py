"""The archive: finished tasks as lines of JSON in compressed files, written before retention deletes them.

``zcat archive/*.jsonl.gz | jq`` reads it. A file that is there is complete. A task may be in it twice, after
a crash between writing and deleting; it is never in neither place. Nobody deletes these files but you.
"""

from __future__ import annotations

import contextlib
import gzip
import secrets
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import transaction

from capataz import durable
from capataz.database import driver
from capataz.sql import statement
from capataz.states import State

# Rows that are in memory at a time: each may have a payload, a result and tracebacks of a megabyte or more.
AT_ONCE = 10


def write(state: State, age: timedelta, since: datetime, most: int) -> dict[uuid.UUID, datetime]:
    """Write up to ``most`` tasks that ended in ``state`` longer than ``age`` ago, and not before ``since``,
    to a new file, oldest first.

    When it returns, the file is on disk. Returns which tasks it holds, and when each had ended; deletes
    nothing. Without such tasks there is no file. Raises OSError, with no file left behind, if it cannot be
    written.
    """
    return _write(state, "archive", {"state": state.value, "age": age, "since": since, "most": most})


def write_these(state: State, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, datetime]:
    """Write these tasks, which have ended in ``state``; the same promise as ``write``."""
    return _write(state, "archive_these", {"ids": list(ids)})


def _write(state: State, query: str, parameters: dict[str, Any]) -> dict[uuid.UUID, datetime]:
    written: dict[uuid.UUID, datetime] = {}
    with transaction.atomic(), _rows(query, parameters) as rows, contextlib.ExitStack() as stack:
        lines = None
        for task_id, finished_at, line in rows:
            if lines is None:
                lines = stack.enter_context(_new_file(state))
            lines.write(line.encode() + b"\n")
            written[task_id] = finished_at
    return written


def clear() -> None:
    """Delete what a crash has left unfinished in the archive."""
    durable.clear(Path(settings.ARCHIVE_DIR))


@contextlib.contextmanager
def _rows(query: str, parameters: dict[str, Any]) -> Iterator[Iterator[Any]]:
    # Named, so that the server keeps the rows and hands them over a few at a time.
    with psycopg.ServerCursor(driver(), "capataz_archive") as cursor:
        cursor.itersize = AT_ONCE
        cursor.execute(statement(query), parameters)
        yield iter(cursor)


@contextlib.contextmanager
def _new_file(state: State) -> Iterator[gzip.GzipFile]:
    name = f"{state.value}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.jsonl.gz"
    place = Path(settings.ARCHIVE_DIR) / name
    with durable.new_file(place) as file, gzip.GzipFile(filename="", fileobj=file, mode="wb") as lines:
        yield lines
