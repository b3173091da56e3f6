"""Settling: telling workflows what has become of their tasks, and tasks what has become of their parents.

Nothing that ends a task knows of this. Of a workflow's task the row itself says that it has ended (or has
been retried since) and that its workflow does not know yet; an index holds exactly those rows. One process at
a time goes through them, whatever moved them, and makes everything that follows from it true in one
transaction. If that is lost, the rows still say what is to be done.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from capataz.database import Connection
from capataz.lifecycle import task_results
from capataz.lifecycle.task_results import Record
from capataz.sql import statement
from capataz.states import FINAL, State

# The advisory lock under which workflows are settled and mended.
LOCK = 0x43505A57

MOST = 2000  # tasks in one transaction
ROUNDS = 50  # transactions in one turn of a dispatcher: other work waits meanwhile

# A time at which no task has ever ended: whatever was settled then is to be looked at again.
NEVER = datetime(1970, 1, 1, tzinfo=UTC)

_UNSETTLED = """
SELECT EXISTS (
    SELECT FROM capataz_task WHERE workflow_id IS NOT NULL AND finished_at IS DISTINCT FROM settled_at
)
"""
_UNFINISHED = "SELECT id FROM capataz_workflow WHERE finished_at IS NULL FOR UPDATE SKIP LOCKED"
_FORGET = "DELETE FROM django_celery_results_taskresult WHERE task_id = ANY(%s)"
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%s)"

_log = logging.getLogger(__name__)


def settle(connection: Connection) -> int:
    """Settle whatever there is to settle; returns how many tasks that were."""
    total = 0
    for _ in range(ROUNDS):
        if execute(connection, _UNSETTLED) != [(True,)]:
            break
        settled = settle_some(connection)
        total += settled
        if not settled:  # somebody else is at it, or has locked the rows
            break
    return total


def settle_some(connection: Connection) -> int:
    """Settle some of it, in one transaction; returns how many tasks that were."""
    with connection.transaction():
        if execute(connection, _TRY_LOCK, [LOCK]) != [(True,)]:
            return 0
        ended = execute(connection, statement("settle_ended"), {"most": MOST})
        if not ended:
            return 0
        _settle_children(connection, [row[0] for row in ended], [row[0] for row in ended if row[4]])
        _count(connection, ended)
        finish(connection, sorted({row[1] for row in ended}))
    return len(ended)


def finish(connection: Connection, workflows: Sequence[uuid.UUID]) -> None:
    """Finish these workflows if they are done, and submit what follows on that; in the caller's
    transaction."""
    due = execute(connection, statement("finish_workflows"), {"ids": list(workflows)})
    if due:
        columns = {
            "ids": [row[0] for row in due],
            "kinds": [row[1] for row in due],
            "tasks": [row[2] for row in due],
        }
        execute(connection, statement("call_back"), columns)


def _settle_children(connection: Connection, ended: list[uuid.UUID], blocked: list[uuid.UUID]) -> None:
    touched = execute(connection, statement("settle_dependencies"), {"ended": ended, "blocked": blocked})
    children = {row[0] for row in touched} | set(blocked)
    if not children:
        return
    seen = dict(execute(connection, statement("settle_children"), {"children": sorted(children)}))
    cancelled = [task_id for task_id, state in seen.items() if state == State.CANCELLED]
    task_results.record(connection, [Record(task_id) for task_id in cancelled])
    revived = [str(task_id) for task_id, state in seen.items() if state == State.BLOCKED]
    if revived:
        execute(connection, _FORGET, [revived])
    missed = sorted(children - seen.keys())
    if missed:
        execute(connection, statement("settle_again"), {"missed": missed, "ended": ended})


def _count(connection: Connection, ended: Iterable[Any]) -> None:
    changes: defaultdict[uuid.UUID, Counter[str]] = defaultdict(Counter)
    for _, workflow_id, before, now, _ in ended:
        changes[workflow_id]["added"] += before == "new"
        changes[workflow_id][before] -= 1
        changes[workflow_id][now] += 1
    ids = sorted(changes)
    columns: dict[str, Any] = {
        name: [changes[each][name] for each in ids] for name in ("added", *(state.value for state in FINAL))
    }
    execute(connection, statement("count_ended"), {"ids": ids, **columns})


def repair(connection: Connection) -> dict[str, int]:
    """Mend what can only have come from outside: dependencies that say something else than their parents'
    rows, or whose parents are gone, tasks that are blocked by nothing, and counts that are not those of the
    rows.

    Returns how much of each there was. Safe at any time, and for any number of callers.
    """
    found: dict[str, int] = {}
    with connection.transaction():
        if execute(connection, _TRY_LOCK, [LOCK]) != [(True,)]:
            return found
        for name in ("mend_orphans", "mend_dependencies", "mend_blocked", "mend_counts"):
            found[name.removeprefix("mend_")] = len(execute(connection, statement(name)))
        unfinished = execute(connection, _UNFINISHED)
        finish(connection, [row[0] for row in unfinished])
    if any(found.values()):
        _log.warning("workflows were mended: %s", found)
    settle(connection)
    return found


def execute(connection: Connection, query: str, parameters: Any = None) -> list[Any]:
    """Run a statement on a connection of ours or Django's; its rows, if it has any."""
    # Not the connection's own cursor class: under Django that one binds parameters in another way.
    with psycopg.Cursor(connection) as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []
