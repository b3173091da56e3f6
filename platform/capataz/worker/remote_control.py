"""Celery's remote control, where it means something else for handlers, or should leave a trace.

``revoke`` and ``terminate`` cancel, in the row, so that it holds for every worker and for ever.
``rate_limit`` and ``time_limit`` are refused for handlers: the stock commands would say yes and change
nothing. What changes one worker for as long as it lives is done, within what it can do, and is an event.
"""

from __future__ import annotations

from typing import Any

from celery.worker import control as stock
from celery.worker.control import control_command, nok, ok
from django.db import DatabaseError, connection

from capataz import handlers
from capataz.lifecycle import cancellation

_stock_revoke, _stock_rate_limit, _stock_time_limit = stock.revoke, stock.rate_limit, stock.time_limit
_stock_add_consumer, _stock_cancel_consumer = stock.add_consumer, stock.cancel_consumer
_stock_pool_grow, _stock_pool_shrink = stock.pool_grow, stock.pool_shrink


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


@control_command(args=[("signal", str)], variadic="task_id", signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: Any, signal: str, task_id: Any, **kwargs: Any) -> Any:
    """Cancel tasks by id, whatever the signal; a plain one gets the signal."""
    return revoke(state, task_id, terminate=True, signal=signal)


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
        return nok(f"{task_name} is a handler: submit with a timeout, or change its declaration")
    return _stock_time_limit(state, task_name, hard=hard, soft=soft, **kwargs)


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(state: Any, queue: str, *args: Any, **kwargs: Any) -> Any:
    """Let this worker take from a queue until it stops; an event."""
    _station(state).heartbeat.note("worker.consumerAdded", queue=queue)
    return _stock_add_consumer(state, queue, *args, **kwargs)


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: Any, queue: str, **kwargs: Any) -> Any:
    """Let this worker take no more from a queue until it is restarted; an event."""
    if queue not in state.app.amqp.queues.consume_from:
        return nok(f"this worker does not take from {queue}")
    _station(state).heartbeat.note("worker.consumerCancelled", queue=queue)
    _stock_cancel_consumer(state, queue, **kwargs)
    return ok(f"no longer consuming from {queue}; to hold it for all workers, pause the queue")


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: Any, max: int | None = None, min: int | None = None, **kwargs: Any) -> Any:
    """Change the bounds of this worker's pool until it stops; an event."""
    autoscaler = state.consumer.controller.autoscaler
    if not autoscaler:
        return nok("this worker has a pool of fixed size: use pool_grow and pool_shrink")
    upper = autoscaler.max_concurrency if max is None else max
    lower = autoscaler.min_concurrency if min is None else min
    if not 0 <= lower <= upper or upper < 1:
        return nok(f"the bounds must be 0 <= min <= max and 1 <= max, not max={upper} min={lower}")
    if refusal := _too_many(state, upper):
        return refusal
    autoscaler.update(upper, lower)
    _station(state).heartbeat.note("worker.autoscaled", max=upper, min=lower)
    return ok(f"autoscale now max={upper} min={lower}")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: Any, n: int = 1, **kwargs: Any) -> Any:
    """Add children to a pool of fixed size."""
    return _resize(state, n, lambda: _stock_pool_grow(state, n, **kwargs))


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: Any, n: int = 1, **kwargs: Any) -> Any:
    """Take idle children from a pool of fixed size."""
    return _resize(state, -n, lambda: _stock_pool_shrink(state, n, **kwargs))


def _resize(state: Any, by: int, resize: Any) -> Any:
    before = state.consumer.pool.num_processes
    if refusal := _too_many(state, before + by):
        return refusal
    return resize()


def _too_many(state: Any, children: int) -> Any:
    """A refusal, if this worker could not keep so many children busy."""
    most = _station(state).most_children
    if children > most:
        return nok(
            f"this worker was made for at most {most} children: restart it with --autoscale={children}"
        )
    return None


def _station(state: Any) -> Any:
    return state.consumer.controller.station
