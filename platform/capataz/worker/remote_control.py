"""Celery's remote control, where it means something else for a handler's task.

``control revoke`` cancels, in the row, so that it holds for every worker and for ever. ``rate_limit`` and
``time_limit`` are refused: the stock commands would say yes and change nothing.
"""

from __future__ import annotations

from typing import Any

from celery.worker import control as stock
from celery.worker.control import control_command, nok, ok
from django.db import DatabaseError, connection

from capataz import handlers
from capataz.lifecycle import cancellation

_stock_revoke, _stock_rate_limit, _stock_time_limit = stock.revoke, stock.rate_limit, stock.time_limit


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> Any:
    """Cancel tasks by id; a running one is stopped too, with or without --terminate."""
    ids = [str(each) for each in (task_id if isinstance(task_id, list | tuple | set) else [task_id])]
    try:
        ours = cancellation.cancel_named(ids, by="remote control")
    except DatabaseError as error:
        return nok(f"nothing was revoked, the database cannot be reached: {type(error).__name__}")
    finally:
        connection.close()
    plain = [each for each in ids if each not in ours]
    if plain:
        return _stock_revoke(state, plain, terminate=terminate, signal=signal, **kwargs)
    return ok(f"tasks {', '.join(ids)} cancelled")


@control_command(args=[("task_name", str), ("rate_limit", str)], signature="<task_name> <rate_limit>")
def rate_limit(state: Any, task_name: str, rate_limit: Any, **kwargs: Any) -> Any:
    """Limit plain tasks per worker, as ever; refused for handlers."""
    if handlers.is_registered(task_name):
        return nok(f"{task_name} is a handler: a limit per worker would be no limit; pause its queue instead")
    return _stock_rate_limit(state, task_name, rate_limit, **kwargs)


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]",
)
def time_limit(state: Any, task_name: str = "", hard: Any = None, soft: Any = None, **kwargs: Any) -> Any:
    """Change the limits of plain tasks in this worker, as ever; refused for handlers."""
    if handlers.is_registered(task_name):
        return nok(f"{task_name} is a handler: give timeLimit with the task, or change its declaration")
    return _stock_time_limit(state, task_name, hard=hard, soft=soft, **kwargs)
