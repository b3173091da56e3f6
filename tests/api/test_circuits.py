"""Circuits over the API: looked at by all, opened, closed and reset by operators."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from capataz.models import Circuit, Event
from tests.api.conftest import Caller

Problem = Callable[[Any, int], dict[str, Any]]


def test_operators_open_close_and_reset(operator: Caller) -> None:
    Circuit.objects.create(name="api.example.org:8443")
    for verb, state, forced in (
        ("open", "OPEN", True),
        ("close", "CLOSED", True),
        ("reset", "CLOSED", False),
    ):
        response = operator.post(f"/circuits/api.example.org:8443/{verb}", {"reason": "because"})
        shown = json.loads(response.content)
        assert (shown["state"], shown["forced"]) == (state, forced)
    [listed] = json.loads(operator.get("/circuits").content)
    assert listed == shown
    details = list(Event.objects.filter(kind__startswith="circuit.").values_list("detail", flat=True))
    assert [(each["by"], each["reason"]) for each in details] == [("token test operator", "because")] * 3


def test_what_is_no_circuit_is_not_found(operator: Caller, problem: Problem) -> None:
    assert problem(operator.post("/circuits/nobody/open"), 404)["code"] == "unknown_circuit"


def test_a_type_shows_its_circuit(viewer: Caller) -> None:
    types = {each["name"]: each["circuit"] for each in json.loads(viewer.get("/types").content)}
    assert types["demo.echo"] is None
    assert types["testing.circuit"] == {
        "failures": 3, "timeoutMs": 30_000, "resetMs": 1000, "probes": 1, "successes": 1,
    }  # fmt: skip
