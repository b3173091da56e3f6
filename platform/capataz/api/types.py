"""Types: what may be submitted, and what the handlers declare about it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from ninja import Router
from ninja.responses import codes_4xx

from capataz import handlers, uniqueness
from capataz.api.auth import Allows
from capataz.api.problems import Problem
from capataz.api.schemas import OverrideIn, ProblemOut, TypeOut
from capataz.api.tasks import CallerRequest
from capataz.api.wire import answer
from capataz.flow import Flow
from capataz.handlers import Handler
from capataz.lifecycle import overriding
from capataz.models import Role, Task
from capataz.policy import Circuit, Retry

router = Router(tags=["types"])


@router.get("/types", auth=Allows(Role.VIEWER), response={200: list[TypeOut], codes_4xx: ProblemOut})
def list_types(request: HttpRequest) -> HttpResponse:
    """Every type that this installation knows, with the JSON Schema of its data."""
    return answer(_now(handlers.registered()))


@router.put(
    "/types/{name}/policy", auth=Allows(Role.OPERATOR), response={200: TypeOut, codes_4xx: ProblemOut}
)
def override(request: CallerRequest, name: str, wanted: OverrideIn) -> HttpResponse:
    """Override parts of a type's policy, from now on and in all processes, or take that back."""
    if not handlers.is_registered(name):
        raise Problem(404, "unknown_type", "There is no type of this name.")
    overriding.override(name, wanted.override or {}, by=request.auth.name)
    [document] = _now([handlers.find(name)])
    return answer(document)


def _now(some: Iterable[Handler[Any]]) -> list[dict[str, Any]]:
    """These types with their policy of now, and what they have in flight."""
    overrides, in_flight = overriding.overrides(), Task.objects.in_flight()
    return [
        {
            **_document(each),
            "effective": _flow(overriding.effective(each.name, overrides.get(each.name))),
            "override": overrides[each.name].told() if each.name in overrides else None,
            "inFlight": in_flight.get(each.name, 0),
        }
        for each in some
    ]


def _flow(flow: Flow) -> dict[str, Any]:
    return {
        "limits": [limit.model_dump(exclude_none=True) for limit in flow.limits],
        "fairness": flow.fairness and flow.fairness.model_dump(),
    }


@cache  # handlers are registered at the start and never change
def _document(handler: Handler[Any]) -> dict[str, Any]:
    retry = handler.retry
    return {
        "name": handler.name,
        "description": inspect.getdoc(handler.function) or "",
        "queue": handler.queue,
        "priority": handler.priority,
        "retry": {
            **_waits(retry),
            "attempts": retry.attempts,
            "on": [
                {
                    "error": f"{kind.__module__}.{kind.__qualname__}",
                    **_waits(rule),
                    "attempts": rule.attempts if rule.names_attempts else None,
                }
                for kind, rule in retry.on.items()
            ],
        },
        "keep": handler.keep.rules,
        "limits": {
            "softMs": None if handler.soft_time_limit is None else round(handler.soft_time_limit * 1000),
            "hardMs": round(handler.time_limit * 1000),
        },
        "unique": handler.unique and uniqueness.document(handler.unique),
        "sensitive": handler.sensitive.paths,
        "circuit": _circuit(handler.circuit),
        "declared": _flow(handler.flow),
        "payloadSchema": handler.payload.json_schema(by_alias=True),
    }


def _waits(retry: Retry) -> dict[str, Any]:
    return {
        "kind": retry.kind,
        "baseMs": round(retry.base * 1000),
        "capMs": round(retry.cap * 1000),
        "jitter": retry.jitter,
    }


def _circuit(policy: Circuit | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    return {
        "failures": policy.failures,
        "timeoutMs": round(policy.timeout * 1000),
        "resetMs": round(policy.reset * 1000),
        "probes": policy.probes,
        "successes": policy.successes,
    }
