"""Problems: whatever goes wrong under the API's paths is told in one form, and never with a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import DataError, InterfaceError, OperationalError
from django.test import Client

from capataz.api import pages, problems, tasks
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests.api.conftest import Caller

Problem = Callable[[Any, int], dict[str, Any]]


@pytest.mark.parametrize(
    "path",
    ["/api", "/api/", "/api/v1", "/api/v1/", "/api/v2/x", "/api/v1/tasks/", "/api/v1/no", "/health/no"],
)
def test_an_unknown_address_is_a_problem(path: str, db: None, problem: Problem) -> None:
    if path == "/api":
        assert Client().get(path).status_code == 404
    else:
        problem(Client().get(path), 404)


def test_a_page_elsewhere_is_djangos_own(db: None) -> None:
    assert Client().get("/no")["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/tasks"), ("PUT", "/tasks/bulk"), ("OPTIONS", "/types")]
)
def test_a_wrong_method_names_the_right_ones(
    viewer: Caller, problem: Problem, method: str, path: str
) -> None:
    response = viewer.call(method, path)
    problem(response, 405)
    assert response["Allow"]


def test_head_answers_as_get_without_a_body(viewer: Caller) -> None:
    response = viewer.call("HEAD", "/types")
    assert response.status_code == 200
    assert response.content == b""
    assert int(response["Content-Length"]) > 100


@pytest.mark.parametrize(
    "error", [OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError]
)
def test_a_database_that_is_away_is_a_503(
    viewer: Caller,
    producer: Caller,
    problem: Problem,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("connection to secret-host failed")

    monkeypatch.setattr(tasks, "submit_many", fail)
    monkeypatch.setattr(pages, "page_of", fail)
    for response in (producer.post("/tasks", {"type": "demo.echo"}), viewer.get("/tasks")):
        document = problem(response, 503)
        assert "secret-host" not in json.dumps(document)
        assert int(response["Retry-After"]) > 0


def test_what_nobody_expected_says_nothing(
    viewer: Caller, problem: Problem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(pages, "page_of", fail)
    document = problem(viewer.get("/tasks"), 500)
    assert "hunter2" not in json.dumps(document)
    assert "hunter2" in caplog.text  # for whoever reads the log


def test_a_value_that_the_database_refuses_is_the_clients_fault() -> None:
    assert problems.of(DataError("x")).status == 422
    assert problems.of(psycopg.DataError("x")).status == 422


def test_a_slow_list_is_given_up(viewer: Caller, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    submit("demo.echo")
    monkeypatch.setattr(pages, "MOST_SECONDS", 0.05)
    slow = Task.objects.extra(where=["pg_sleep(30) IS NOT NULL"])
    monkeypatch.setattr(Task.objects, "all", lambda: slow)
    assert problem(viewer.get("/tasks"), 503)["code"] == "too_slow"


def test_a_list_of_faults_ends_somewhere(producer: Caller, problem: Problem) -> None:
    body = {"type": "demo.sleep", "data": {f"key{n}": n for n in range(1000)}}
    document = problem(producer.post("/tasks", body), 422)
    assert len(document["errors"]) == problems.MOST_FAULTS


def test_a_strange_host_is_a_problem(db: None, problem: Problem) -> None:
    problem(Client().get("/api/v1/tasks", headers={"Host": "evil.example"}), 400)
