"""Clients of the API, by role, and what its tests say often."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from capataz.models import Role, Task, Token

BASE = "/api/v1"


@dataclass
class Caller:
    """Somebody with a token."""

    secret: str | None

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send a request; a body is sent as JSON, or as it is if it is bytes."""
        given: dict[str, Any] = {"headers": headers}
        if self.secret:
            headers.setdefault("Authorization", f"Bearer {self.secret}")
        if body is not None:
            given["data"] = body if isinstance(body, bytes) else json.dumps(body).encode()
            given["content_type"] = headers.pop("Content-Type", "application/json")
        address = path if path.startswith(("/health", "/api")) else BASE + path
        response = Client(raise_request_exception=False).generic(
            method, address, given.pop("data", b""), **given
        )
        return response

    def get(self, path: str, **headers: str) -> Any:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.call("POST", path, body, **headers)


@pytest.fixture
def client_as(db: None) -> Callable[[str | None], Caller]:
    """``client_as("operator")`` has a token of this role; ``client_as(None)`` has none."""

    def made(role: str | None) -> Caller:
        return Caller(Token.issue(name=f"test {role}", role=Role(role))[1] if role else None)

    return made


@pytest.fixture
def viewer(client_as: Callable[[str], Caller]) -> Caller:
    return client_as("viewer")


@pytest.fixture
def producer(client_as: Callable[[str], Caller]) -> Caller:
    return client_as("producer")


@pytest.fixture
def operator(client_as: Callable[[str], Caller]) -> Caller:
    return client_as("operator")


@pytest.fixture
def queues(db: None) -> None:
    """The queues of the registered handlers."""
    call_command("setup_platform", verbosity=0)


@pytest.fixture
def problem() -> Callable[[Any, int], dict[str, Any]]:
    """The problem that a response must be, of this status."""

    def read(response: Any, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.content
        assert response["Content-Type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(response.content)
        assert {"type", "title", "status", "detail", "code", "errors"} <= set(document)
        assert document["status"] == status
        assert "Traceback" not in response.content.decode()
        return document

    return read


@pytest.fixture
def end_as(db: None) -> Callable[..., Task]:
    """Bring a task to an end as if a worker had done it."""

    def end(task: Task, state: str, **changes: Any) -> Task:
        from django.db.models.functions import Now

        Task.objects.filter(pk=task.pk).update(
            state=state, finished_at=Now(), run_at=None, released_at=None, **changes
        )
        task.refresh_from_db()
        return task

    return end
