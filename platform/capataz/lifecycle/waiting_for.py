"""What a waiting task waits for, whenever its turn comes: a queue, a worker, or a limit of its type."""

from __future__ import annotations

from datetime import timedelta

from django.db import connection

from capataz.database import database_now
from capataz.flow import Limit
from capataz.lifecycle import overriding
from capataz.lifecycle.lanes import rate_name
from capataz.models import Rate, Task, TypePolicy
from capataz.sql import statement
from capataz.states import State


def obstacle(task: Task) -> str | None:
    """What keeps this task from being started; None if nothing does, or it is not waiting."""
    return task.obstacle() or (_limit(task) if _may_be_limited(task) else None)


def _may_be_limited(task: Task) -> bool:
    return task.state == State.QUEUED and task.released_at is None


def _limit(task: Task) -> str | None:
    override = overriding.overrides(TypePolicy.objects.filter(pk=task.type)).get(task.type)
    flow = overriding.effective(task.type, override)
    if not flow.limits:
        return None
    with connection.cursor() as cursor:
        cursor.execute(statement("in_use"), {"types": [task.type], "paths": [flow.path]})
        used = {lane: count for _, lane, count, _ in cursor.fetchall()}
        mine = "SELECT capataz_lane(type, payload, %s) FROM capataz_task WHERE id = %s"
        cursor.execute(mine, [flow.path, task.pk])
        [lane] = cursor.fetchone() or [""]
    for limit in flow.limits:
        count = used.get(lane, 0) if limit.per else sum(used.values())
        reason = _reason(task, limit, count, lane if limit.per else "")
        if reason:
            return reason
    return None


def _reason(task: Task, limit: Limit, count: int, lane: str) -> str | None:
    whose = f"its {limit.per}" if limit.per else "its type"
    if limit.concurrency is not None and count >= limit.concurrency:
        return f"{count} tasks of {whose} are in flight, the limit is {limit.concurrency}"
    if limit.rate is not None:
        spent = Rate.objects.filter(name=rate_name(task.type, limit.rate), key=lane).first()
        if spent is not None:
            free_at = spent.unused_at - timedelta(seconds=limit.interval * (limit.most_at_once - 1))
            if free_at > database_now():
                return f"the rate of {limit.rate} of {whose} is used up until {free_at:%Y-%m-%dT%H:%M:%SZ}"
    return None
