"""Circuits: which calls are held back because they fail, and what operators decide about it."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja import Body, Router
from ninja.responses import codes_4xx

from capataz.api.auth import Allows
from capataz.api.problems import Problem
from capataz.api.schemas import CircuitOut, ProblemOut, ReasonIn
from capataz.api.tasks import CallerRequest
from capataz.api.wire import answer, moment
from capataz.lifecycle import circuit_breaking
from capataz.models import Circuit, Role

router = Router(tags=["circuits"])

ONE = {200: CircuitOut, codes_4xx: ProblemOut}
Why = Annotated[ReasonIn | None, Body()]


@router.get("/circuits", auth=Allows(Role.VIEWER), response={200: list[CircuitOut], codes_4xx: ProblemOut})
def list_circuits(request: HttpRequest) -> HttpResponse:
    """Every circuit: those of types begin with type:, all others have the names that handlers gave them."""
    return answer([_document(circuit) for circuit in Circuit.objects.all()])


@router.post("/circuits/{name}/open", auth=Allows(Role.OPERATOR), response=ONE)
def force_open(request: CallerRequest, name: str, why: Why = None) -> HttpResponse:
    """Let no call through until it is reset. Tasks of a type wait, and spend no attempt."""
    reason = why.reason if why else ""
    return answer(_document(circuit_breaking.force_open(_find(name), reason=reason, by=request.auth.name)))


@router.post("/circuits/{name}/close", auth=Allows(Role.OPERATOR), response=ONE)
def force_closed(request: CallerRequest, name: str, why: Why = None) -> HttpResponse:
    """Let every call through until it is reset, however many fail."""
    reason = why.reason if why else ""
    return answer(_document(circuit_breaking.force_closed(_find(name), reason=reason, by=request.auth.name)))


@router.post("/circuits/{name}/reset", auth=Allows(Role.OPERATOR), response=ONE)
def reset(request: CallerRequest, name: str, why: Why = None) -> HttpResponse:
    """Close it, with nothing counted; from here on it opens and closes by itself."""
    reason = why.reason if why else ""
    return answer(_document(circuit_breaking.reset(_find(name), reason=reason, by=request.auth.name)))


def _find(name: str) -> Circuit:
    circuit = Circuit.objects.filter(name=name).first() if "\0" not in name else None
    if circuit is None:
        raise Problem(404, "unknown_circuit", "There is no circuit of this name.")
    return circuit


def _document(circuit: Circuit) -> dict[str, Any]:
    return {
        "name": circuit.name,
        "state": circuit.state,
        "forced": circuit.forced,
        "failureCount": circuit.failures,
        "successCount": circuit.successes,
        "changedAt": moment(circuit.changed_at),
        "retryAt": moment(circuit.retry_at),
        "lastFailureTime": moment(circuit.last_failure_at),
    }
