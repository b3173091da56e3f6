"""The figures of the whole platform on one page, in the form of its ``/metrics``."""

from __future__ import annotations

from typing import Any

import psutil
from asgiref.sync import sync_to_async
from django.db.models import Max, Min, Sum

from capataz.database import database_now
from capataz.models import Attempt, Circuit, CircuitState, Outcome, Rollup, Task, Worker
from capataz.models.counting import count
from capataz.models.worker import ALIVE
from capataz.states import FINAL, State


def get_system_metrics() -> dict[str, Any]:
    """How the platform does, now and since the oldest roll-up that is kept. Times are milliseconds.

    ``system`` is about this process, but for ``uptime``: the seconds since the oldest live worker started.
    What waits is counted up to 10,000, and so is what is kept of each outcome, or else estimated.
    """
    ended = Rollup.objects.aggregate(
        succeeded=Sum("succeeded", default=0),
        failed=Sum("failed", default=0),
        dead=Sum("dead", default=0),
        seconds=Sum("run_seconds", default=0.0),
    )
    attempts = ended["succeeded"] + ended["failed"]
    last = Attempt.objects.filter(outcome=Outcome.FAILED).aggregate(at=Max("finished_at"))["at"]
    pending = count(Task.objects.exclude(state__in=FINAL).filter(worker_id__isnull=True)).value
    return {
        "concurrency": {
            "activeJobs": Task.objects.filter(released_at__isnull=False, worker_id__isnull=False).count(),
            "queueSize": pending,
            "totalProcessed": ended["succeeded"] + ended["dead"],
            "totalFailed": ended["dead"],
            "averageProcessingTime": round(1000 * ended["seconds"] / attempts) if attempts else 0,
        },
        "circuitBreaker": {
            "state": _worst_circuit(),
            "failureCount": ended["failed"],
            "successCount": ended["succeeded"],
            "lastFailureTime": last and last.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        },
        "persistence": {
            "pendingTasks": pending,
            "completedTasks": count(Task.objects.filter(state=State.SUCCEEDED)).value,
            "failedTasks": count(Task.objects.filter(state=State.DEAD)).value,
        },
        "system": _system(),
    }


async def aget_system_metrics() -> dict[str, Any]:
    """``get_system_metrics``, for coroutines."""
    return await sync_to_async(get_system_metrics)()


def _system() -> dict[str, Any]:
    oldest = Worker.objects.filter(state__in=ALIVE).aggregate(at=Min("started_at"))["at"]
    process = psutil.Process()
    memory, times = process.memory_full_info(), process.cpu_times()
    return {
        "uptime": max(0, round((database_now() - oldest).total_seconds())) if oldest else 0,
        "memoryUsage": {"rss": memory.rss, "heapUsed": memory.uss},
        "cpuUsage": {"user": round(times.user * 1e6), "system": round(times.system * 1e6)},
    }


def _worst_circuit() -> str:
    """OPEN if any circuit is, else HALF_OPEN if any is; there are as many as types and hosts have them."""
    found = set(Circuit.objects.exclude(state=CircuitState.CLOSED).values_list("state", flat=True).distinct())
    for state in (CircuitState.OPEN, CircuitState.HALF_OPEN):
        if state in found:
            return state.value
    return CircuitState.CLOSED.value
