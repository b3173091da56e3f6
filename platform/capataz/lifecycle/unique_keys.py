"""Unique keys: what becomes of submissions that did not go in because a task holds their key.

Under READ COMMITTED each statement sees what was committed before it began. So a submission goes in or meets
a holder, in turns, until one of both has happened.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import OperationalError, transaction
from django.db.models import Q

from capataz import database
from capataz.errors import Conflict
from capataz.models import Task
from capataz.sql import statement
from capataz.uniqueness import TRAILING, Debounce

if TYPE_CHECKING:
    from capataz.lifecycle.submission import _Row

# Each turn after the first is one that somebody else has used to free or take the key.
MOST_TURNS = 100
MOST_DEADLOCKS = 5

Insert = Callable[[Sequence["_Row"]], set[uuid.UUID]]
SameTasks = Callable[[Sequence["_Row"]], list[uuid.UUID]]


def settle(rows: Sequence[_Row], insert: Insert, same_tasks: SameTasks) -> list[uuid.UUID]:
    """The tasks that these rows, which did not go in, have become or met.

    A client's id goes before the unique key: who repeats a submission is answered with its task.
    Raises Conflict for another task of that id, and for a key of mode ``reject`` that is held.
    """
    ids: dict[int, uuid.UUID] = {}
    pending = dict(enumerate(rows))
    for _ in range(MOST_TURNS):
        named = _with_known_ids(pending)
        ids.update(zip(named, same_tasks([pending[place] for place in named]), strict=True))
        pending = {place: row for place, row in pending.items() if place not in ids}
        if not pending:
            break
        for place, holder, verdict, until in _meet(pending):
            row = pending[place]
            if verdict == "keep" and row.unique is not None and row.unique.mode == "reject":
                raise Conflict(f"the unique key is held by the task {holder}", holder=holder)
            if verdict in ("keep", "change"):
                ids[place] = holder
                del pending[place]
            elif verdict == "follow":
                pending[place] = replace(row, unique_scope=TRAILING, run_at=until, delay=0.0)
        accepted = insert(list(pending.values())) if pending else set()
        for place, row in list(pending.items()):
            if row.id in accepted:
                accepted.remove(row.id)
                ids[place] = pending.pop(place).id
        if not pending:
            break
    else:
        raise Conflict("the unique key changes hands too fast; try again")
    return [ids[place] for place in range(len(rows))]


def unless_deadlocked(call: Callable[[], list[uuid.UUID]]) -> list[uuid.UUID]:
    """What this call returns, in a transaction of its own or a savepoint, tried again after a deadlock.

    Two calls lock in one order, but come back for keys that changed hands meanwhile.
    """
    for turn in range(MOST_DEADLOCKS):
        try:
            with transaction.atomic():
                return call()
        except (OperationalError, psycopg.OperationalError) as error:
            cause = error.__cause__ if isinstance(error, OperationalError) else error
            if not isinstance(cause, psycopg.errors.DeadlockDetected) or turn == MOST_DEADLOCKS - 1:
                raise
    raise AssertionError


def _with_known_ids(pending: dict[int, _Row]) -> list[int]:
    """The places of the rows whose ids or client's ids some task has."""
    keys = [row.key for row in pending.values() if row.key is not None]
    own = [row.id for row in pending.values() if row.id_is_given]
    if not keys and not own:
        return []
    found = Task.objects.filter(Q(pk__in=own) | Q(key__in=keys)).values_list("pk", "key")
    known = {name for pair in found for name in pair if name is not None}
    return [
        place
        for place, row in pending.items()
        if (row.key in known if row.key is not None else row.id_is_given and row.id in known)
    ]


def _meet(pending: dict[int, _Row]) -> list[tuple[int, uuid.UUID, str, Any]]:
    rows = list(pending.values())
    policies = [row.unique for row in rows]
    debounces = [each if isinstance(each, Debounce) else None for each in policies]
    parameters = {
        "place": list(pending),
        "mode": [each.mode if each is not None else "return" for each in policies],
        "max_wait": [each and each.max_wait for each in debounces],
        "factor": [each.factor if each is not None else 1.0 for each in debounces],
        "after": [each.after if each is not None else 0 for each in debounces],
        "longest": [each and each.longest for each in debounces],
        **{
            name: [getattr(row, name) for row in rows]
            for name in ("unique_key", "payload", "priority", "run_at", "delay")
        },
    }
    with psycopg.Cursor(database.driver()) as cursor:
        return cursor.execute(statement("meet_unique"), parameters).fetchall()
