"""Queues, workers and types over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.http import HttpResponse

from capataz.api.schemas import QueueOut, TypeOut, WorkerOut
from capataz.lifecycle.submission import submit
from capataz.models import Event, Worker
from tests.api.conftest import Caller
from tests.api.test_roles import EXPECTED

Problem = Callable[[Any, int], dict[str, Any]]


def read(response: HttpResponse) -> Any:
    assert response.status_code == 200, response.content
    return json.loads(response.content)


def test_queues_tell_what_waits(viewer: Caller, queues: None) -> None:
    submit("demo.echo")
    submit("demo.echo", priority=9)
    submit("demo.echo", delay=60)
    shown = {queue["name"]: queue for queue in read(viewer.get("/queues"))}
    for queue in shown.values():
        QueueOut.model_validate(queue)
    assert shown["default"]["waiting"] == 2
    assert 0 <= shown["default"]["oldestWaitingMs"] < 60_000
    assert shown["maintenance"]["waiting"] == 0
    assert shown["maintenance"]["oldestWaitingMs"] is None


def test_a_queue_is_paused_and_resumed(operator: Caller, queues: None) -> None:
    for _ in range(2):
        paused = read(operator.post("/queues/default/pause", {"reason": "repairs"}))
        assert (paused["paused"], paused["pauseReason"]) == (True, "repairs")
    resumed = read(operator.post("/queues/default/resume"))
    assert (resumed["paused"], resumed["pausedAt"]) == (False, None)
    kinds = list(Event.objects.order_by("id").values_list("kind", flat=True))
    assert kinds == ["queue.paused", "queue.resumed"]


def test_a_limit_is_set_shown_and_lifted(operator: Caller, queues: None) -> None:
    submit("demo.echo")
    submit("demo.echo", delay=60)
    limited = read(operator.call("PUT", "/queues/default/limit", {"waitingLimit": 7}))
    QueueOut.model_validate(limited)
    assert (limited["waitingLimit"], limited["waiting"], limited["later"]) == (7, 1, 1)
    lifted = read(operator.call("PUT", "/queues/default/limit", {"waitingLimit": None}))
    assert lifted["waitingLimit"] is None
    told = list(Event.objects.order_by("id").values_list("kind", "subject"))
    assert told == [("queue.limited", "default"), ("queue.unlimited", "default")]
    assert Event.objects.earliest("id").detail["by"] == "token test operator"


@pytest.mark.parametrize(
    "body", [{"waitingLimit": 0}, {"waitingLimit": 1.5}, {"waitingLimit": 1e9}, {}, {"limit": 1}]
)
def test_a_senseless_limit_is_refused(
    operator: Caller, queues: None, problem: Problem, body: dict[str, Any]
) -> None:
    document = problem(operator.call("PUT", "/queues/default/limit", body), 422)
    assert "/waitingLimit" in [error["pointer"] for error in document["errors"]]
    assert not Event.objects.exists()


@pytest.mark.parametrize("name", ["nothing", "%00", "A", "x" * 100])
def test_an_unknown_queue_is_not_found(operator: Caller, queues: None, problem: Problem, name: str) -> None:
    problem(operator.post(f"/queues/{name}/pause"), 404)
    problem(operator.post(f"/queues/{name}/resume"), 404)


def test_workers_are_told_with_their_condition(viewer: Caller) -> None:
    def worker(name: str, **changes: Any) -> None:
        Worker.objects.create(name=name, host="here", pid=7, **{"phase": "running", **changes})

    worker("busy", running=1, heartbeat_at=Now() - timedelta(seconds=2, milliseconds=500))
    worker("idle")
    worker("new", phase="connecting")
    worker(
        "lost",
        state="lost",
        stopped_at=Now() - timedelta(minutes=5),
        heartbeat_at=Now() - timedelta(minutes=5, seconds=30),
    )
    worker("long lost", state="lost", stopped_at=Now() - timedelta(hours=2))
    worker("stopped", state="stopped", stopped_at=Now())
    shown = {each["name"]: each for each in read(viewer.get("/workers"))}
    for each in shown.values():
        WorkerOut.model_validate(each)
    assert {name: each["status"] for name, each in shown.items()} == {
        "busy": "Activo", "idle": "Inactivo", "new": "Cargando", "lost": "Perdido",
    }  # fmt: skip
    assert shown["busy"]["lastHeartbeatAgo"] == "hace 2 seg"
    assert shown["lost"]["lastHeartbeatAgo"] == "hace 5 min"


def test_types_tell_their_schema(viewer: Caller) -> None:
    shown = {each["name"]: each for each in read(viewer.get("/types"))}
    for each in shown.values():
        TypeOut.model_validate(each)
    assert shown["demo.sleep"]["payloadSchema"]["properties"]["seconds"]["maximum"] == 3600
    assert shown["demo.sleep"]["limits"]["hardMs"] == 3_700_000
    assert shown["cleanup"]["queue"] == "maintenance"


def test_the_openapi_document_names_every_route(viewer: Caller) -> None:
    document = read(viewer.get("/openapi.json"))
    assert document["openapi"].startswith("3.1")
    routes = {re.sub(r"\{\w+:(\w+)\}", r"{\1}", path) for _, path in EXPECTED} - {"/openapi.json"}
    assert set(document["paths"]) == {f"/api/v1{path}" for path in routes}


def test_a_policy_is_overridden_shown_and_taken_back(operator: Caller, queues: None) -> None:
    wanted = {"limits": [{"concurrency": 5}, {"rate": "100/m", "burst": 10}]}
    shown = read(operator.call("PUT", "/types/demo.echo/policy", {"override": wanted}))
    assert shown["override"] == wanted
    assert shown["declared"] == {"limits": [], "fairness": None}
    assert [limit["weight"] for limit in shown["effective"]["limits"]] == [1, 1]
    [listed] = [each for each in read(operator.call("GET", "/types")) if each["name"] == "demo.echo"]
    assert listed == shown
    back = read(operator.call("PUT", "/types/demo.echo/policy", {"override": None}))
    assert (back["override"], back["effective"]) == (None, back["declared"])


def test_a_senseless_override_is_refused_by_its_field(
    operator: Caller, queues: None, problem: Problem
) -> None:
    body = {"override": {"limits": [{"rate": "often"}]}}
    document = problem(operator.call("PUT", "/types/demo.echo/policy", body), 422)
    assert "override/limits/0/rate" in str(document["errors"])
    problem(operator.call("PUT", "/types/nope/policy", {"override": {}}), 404)
