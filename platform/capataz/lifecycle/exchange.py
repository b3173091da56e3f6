"""Exchange: all tasks as three files of JSON, and back. What is read back is what was written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from django.db import transaction
from django.db.models import Model
from psycopg import sql

from capataz import durable
from capataz.database import driver
from capataz.errors import CapatazError
from capataz.lifecycle import wakeup
from capataz.models.attempt import Attempt
from capataz.models.task import Task
from capataz.models.workflow import Dependency, Workflow
from capataz.sql import statement
from capataz.states import FINAL, UNFINISHED, State

FILES: dict[str, frozenset[State]] = {
    "pending-tasks.json": UNFINISHED,
    "completed-tasks.json": frozenset({State.SUCCEEDED}),
    "failed-tasks.json": FINAL - {State.SUCCEEDED},
}
AT_ONCE = 200

Report = Callable[[str, int], None]


class Unreadable(CapatazError):
    """A file is not what ``write`` makes; the message names the line."""


def write(folder: Path, report: Report = lambda file, count: None) -> dict[str, int]:
    """Write all tasks of one moment, with their attempts, to FILES in this folder, replacing those there.

    Each file is a JSON array with a task a line. Returns how many each holds. Raises OSError.
    """
    counts: dict[str, int] = {}
    with transaction.atomic():
        driver().execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for name, states in FILES.items():
            counts[name] = _write_file(folder / name, states, partial(report, name))
    return counts


def _write_file(path: Path, states: frozenset[State], report: Callable[[int], None]) -> int:
    count = 0
    with durable.new_file(path) as file, psycopg.ServerCursor(driver(), "capataz_exchange") as cursor:
        cursor.itersize = AT_ONCE
        cursor.execute(statement("write_tasks"), {"states": sorted(states)})
        for (line,) in cursor:
            file.write((b",\n" if count else b"[\n") + line.encode())
            count += 1
            if count % AT_ONCE == 0:
                report(count)
        file.write(b"\n]\n" if count else b"[]\n")
    return count


def read(folder: Path, report: Report = lambda file, count: None) -> dict[str, int]:
    """Add the tasks of these files that are not there yet, all or none; returns how many of each file.

    One that was held by a worker waits again. Raises Unreadable, and OSError for a file that is missing.
    """
    added = dict.fromkeys(FILES, 0)
    with transaction.atomic():
        for name in FILES:
            lines = _lines(folder / name)
            while batch := list(itertools.islice(lines, AT_ONCE)):
                added[name] += _add(batch, folder / name)
                report(name, added[name])
        transaction.on_commit(wakeup.ring)
    return added


def _lines(path: Path) -> Iterator[str]:
    """The tasks of a file, each as JSON text."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip().removesuffix(",")
            if text in ("[", "]", "[]", ""):
                continue
            try:
                is_task = isinstance(json.loads(text), dict)
            except ValueError:
                is_task = False
            if not is_task:
                raise Unreadable(f"{path}, line {number}: is not a task as JSON; each has a line of its own")
            yield text


def _add(batch: list[str], path: Path) -> int:
    models = {"task": Task, "attempt": Attempt, "workflow": Workflow, "dependency": Dependency}
    columns = {name: _columns(model) for name, model in models.items()}
    query = sql.SQL(statement("read_tasks")).format(**columns)
    values: dict[str, Any] = {"tasks": f"[{','.join(batch)}]"}
    try:
        with psycopg.Cursor(driver()) as cursor:
            return int(cursor.execute(query, values).fetchall()[0][0])
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        said = error.diag.message_primary or type(error).__name__
        raise Unreadable(f"{path}: a task cannot be kept by the database: {said}") from None


def _columns(model: type[Model]) -> sql.Composed:
    names = [field.column for field in model._meta.concrete_fields if field.column]
    return sql.SQL(", ").join([sql.Identifier(name) for name in names])
