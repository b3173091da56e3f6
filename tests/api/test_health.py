"""Health: open to everyone, quick, and honest about what is missing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from capataz.api import health
from capataz.api.health import Check, facts_of


def checks(**changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: changes


def fail() -> dict[str, Any]:
    raise OSError("secret reason")


def ask(monkeypatch: pytest.MonkeyPatch, **kinds: Callable[[], dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    for name, ask_it in kinds.items():
        monkeypatch.setattr(health, f"_{name}", Check(name, ask_it))
    response = Client().get("/health")
    assert "secret" not in response.content.decode()
    return response.status_code, json.loads(response.content)


def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    status, document = ask(monkeypatch, database=checks(workers=2, dispatchers=1), redis=checks())
    assert (status, document["status"]) == (200, "normal")
    assert document["checks"]["workers"] == {"ok": True, "alive": 2}


@pytest.mark.parametrize("missing", [{"workers": 0, "dispatchers": 1}, {"workers": 1, "dispatchers": 0}])
def test_without_workers_or_dispatcher_tasks_only_wait(
    monkeypatch: pytest.MonkeyPatch, missing: dict[str, int]
) -> None:
    status, document = ask(monkeypatch, database=checks(**missing), redis=checks())
    assert (status, document["status"]) == (200, "degraded")


def test_without_redis_tasks_are_still_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    status, document = ask(monkeypatch, database=checks(workers=1, dispatchers=1), redis=fail)
    assert (status, document["status"]) == (200, "degraded")
    assert document["checks"]["redis"] == {"ok": False}


def test_without_the_database_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    status, document = ask(monkeypatch, database=fail, redis=checks())
    assert (status, document["status"]) == (503, "down")


def test_the_real_servers_answer(db: None) -> None:
    response = Client().get("/health")
    health._session.close()  # or the test database could not be dropped
    assert response.status_code == 200
    document = json.loads(response.content)
    assert document["checks"]["database"] == document["checks"]["redis"] == {"ok": True}


def test_a_frozen_server_is_not_waited_for() -> None:
    let_go = threading.Event()
    asked = []

    def freeze() -> dict[str, Any]:
        asked.append(1)
        let_go.wait(30)
        return {}

    check = Check("frozen", freeze)
    start = time.monotonic()
    assert [facts_of(check.start(), patience=0.1) for _ in range(3)] == [[{"ok": False}]] * 3
    assert time.monotonic() - start < 5
    assert asked == [1]
    let_go.set()


def test_the_process_answers_without_asking_anybody() -> None:
    assert Client().get("/health/live").status_code == 200
    assert Client().post("/health/live")["Content-Type"] == "application/problem+json"
