"""Queues: how much waits in them and may wait, pause and resume."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja import Body, Router
from ninja.responses import codes_4xx

from capataz.api.auth import Allows
from capataz.api.problems import Problem
from capataz.api.schemas import LimitIn, NothingIn, ProblemOut, QueueOut, ReasonIn
from capataz.api.tasks import CallerRequest
from capataz.api.wire import answer, moment
from capataz.handlers import QUEUE_NAME
from capataz.lifecycle import limiting, pausing
from capataz.models import Queue, Role
from capataz.models.queue_load import QueueLoad, queue_loads

router = Router(tags=["queues"])

ONE = {200: QueueOut, codes_4xx: ProblemOut}


@router.get("/queues", auth=Allows(Role.VIEWER), response={200: list[QueueOut], codes_4xx: ProblemOut})
def list_queues(request: HttpRequest) -> HttpResponse:
    """Every queue, with what waits and runs in it."""
    return answer([_document(load) for load in queue_loads()])


@router.post("/queues/{name}/pause", auth=Allows(Role.OPERATOR), response=ONE)
def pause(request: CallerRequest, name: str, why: Annotated[ReasonIn | None, Body()] = None) -> HttpResponse:
    """Start nothing more from this queue. It still accepts tasks; what runs goes on."""
    pausing.pause(_find(name), reason=why.reason if why else "", by=request.auth.name)
    return _answer_one(name)


@router.post("/queues/{name}/resume", auth=Allows(Role.OPERATOR), response=ONE)
def resume(
    request: CallerRequest, name: str, nothing: Annotated[NothingIn | None, Body()] = None
) -> HttpResponse:
    """Start tasks of this queue again."""
    pausing.resume(_find(name), by=request.auth.name)
    return _answer_one(name)


@router.put("/queues/{name}/limit", auth=Allows(Role.OPERATOR), response=ONE)
def limit(request: CallerRequest, name: str, wanted: LimitIn) -> HttpResponse:
    """Let no more than so many tasks wait in this queue; null lifts the limit. What waits already stays."""
    limiting.limit(_find(name), wanted.waiting_limit, by=request.auth.name)
    return _answer_one(name)


def _find(name: str) -> Queue:
    queue = Queue.objects.filter(name=name).first() if QUEUE_NAME.fullmatch(name) else None
    if queue is None:
        raise Problem(404, "unknown_queue", "There is no queue of this name.")
    return queue


def _answer_one(name: str) -> HttpResponse:
    [load] = [load for load in queue_loads() if load.name == name]
    return answer(_document(load))


def _document(load: QueueLoad) -> dict[str, Any]:
    return {
        "name": load.name,
        "paused": load.is_paused,
        "pausedAt": moment(load.paused_at),
        "pauseReason": load.pause_reason,
        "waitingLimit": load.waiting_limit,
        "waiting": load.waiting,
        "waitingIsExact": load.waiting_is_exact,
        "later": load.later,
        "claimed": load.claimed,
        "running": load.running,
        "oldestWaitingMs": None if load.oldest_age is None else max(0, round(load.oldest_age * 1000)),
    }
