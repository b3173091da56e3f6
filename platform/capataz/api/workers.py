"""Workers: who is there, and how they are."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from ninja import Router
from ninja.responses import codes_4xx

from capataz.api.auth import Allows
from capataz.api.schemas import ProblemOut, WorkerOut
from capataz.api.wire import ago, answer, moment
from capataz.database import database_now
from capataz.models import Role, Worker, WorkerState
from capataz.models.worker import ALIVE

router = Router(tags=["workers"])

# A lost worker is shown for this long.
RECENTLY = timedelta(hours=1)
MOST_WORKERS = 1000


@router.get("/workers", auth=Allows(Role.VIEWER), response={200: list[WorkerOut], codes_4xx: ProblemOut})
def list_workers(request: HttpRequest) -> HttpResponse:
    """The workers that live, and those that were lost within the last hour."""
    lost_recently = Q(state=WorkerState.LOST, stopped_at__gt=Now() - RECENTLY)
    shown = Worker.objects.filter(Q(state__in=ALIVE) | lost_recently)[:MOST_WORKERS]
    now = database_now()
    return answer([_document(worker, now) for worker in shown])


def status_of(worker: Worker) -> str:
    """What the dashboard calls this worker's condition."""
    if not worker.is_alive:
        return "Perdido"
    if worker.running:
        return "Activo"
    return "Cargando" if worker.phase == "connecting" else "Inactivo"


def _document(worker: Worker, now: datetime) -> dict[str, Any]:
    return {
        "id": worker.pk,
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "state": worker.state,
        "status": status_of(worker),
        "queues": worker.queues,
        "types": worker.types,
        "concurrency": worker.max_concurrency,
        "processes": worker.processes,
        "running": worker.running,
        "claimed": worker.claimed,
        "cpuPercent": round(worker.cpu_percent, 1),
        "ramMb": round(worker.ram_mb, 1),
        "startedAt": moment(worker.started_at),
        "lastHeartbeat": moment(worker.heartbeat_at),
        "lastHeartbeatAgo": ago(now - worker.heartbeat_at),
        "loopLag": round(worker.loop_lag, 3),
        "phase": worker.phase,
    }
