"""Who may do what: every route says its role, and holds to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone

from capataz.api.app import addresses, api
from capataz.api.auth import Allows
from capataz.models import Role, Token
from tests.api.conftest import BASE, Caller

Problem = Callable[[Any, int], dict[str, Any]]

# A new route is written here first, so that nobody opens one by accident.
EXPECTED = {
    ("POST", "/tasks"): Role.PRODUCER,
    ("POST", "/tasks/bulk"): Role.PRODUCER,
    ("GET", "/tasks"): Role.VIEWER,
    ("GET", "/tasks/{path:task_id}"): Role.VIEWER,
    ("POST", "/tasks/{path:task_id}/cancel"): Role.OPERATOR,
    ("POST", "/tasks/{path:task_id}/retry"): Role.OPERATOR,
    ("POST", "/tasks/{path:task_id}/replay"): Role.OPERATOR,
    ("POST", "/tasks/{path:task_id}/discard"): Role.OPERATOR,
    ("GET", "/tasks/{path:task_id}/logs"): Role.VIEWER,
    ("GET", "/dead-letters"): Role.VIEWER,
    ("POST", "/bulk"): Role.OPERATOR,
    ("POST", "/workflows"): Role.PRODUCER,
    ("GET", "/workflows/{uuidstr:workflow_id}"): Role.VIEWER,
    ("GET", "/workflows/{uuidstr:workflow_id}/tasks"): Role.VIEWER,
    ("POST", "/workflows/{uuidstr:workflow_id}/cancel"): Role.OPERATOR,
    ("POST", "/workflows/{uuidstr:workflow_id}/retry"): Role.OPERATOR,
    ("POST", "/batches"): Role.PRODUCER,
    ("POST", "/batches/{uuidstr:batch_id}/tasks"): Role.PRODUCER,
    ("POST", "/batches/{uuidstr:batch_id}/close"): Role.PRODUCER,
    ("GET", "/workers"): Role.VIEWER,
    ("GET", "/types"): Role.VIEWER,
    ("PUT", "/types/{name}/policy"): Role.OPERATOR,
    ("GET", "/queues"): Role.VIEWER,
    ("POST", "/queues/{name}/pause"): Role.OPERATOR,
    ("POST", "/queues/{name}/resume"): Role.OPERATOR,
    ("PUT", "/queues/{name}/limit"): Role.OPERATOR,
    ("GET", "/circuits"): Role.VIEWER,
    ("POST", "/circuits/{name}/open"): Role.OPERATOR,
    ("POST", "/circuits/{name}/close"): Role.OPERATOR,
    ("POST", "/circuits/{name}/reset"): Role.OPERATOR,
    ("GET", "/reports/{uuidstr:report_id}"): Role.VIEWER,
    ("GET", "/openapi.json"): Role.VIEWER,
}


def routes() -> Iterator[tuple[str, str, Any]]:
    for _, router in api._routers:
        for path, view in router.path_operations.items():
            for operation in view.operations:
                for method in operation.methods:
                    yield method, path, operation.auth_callbacks


def test_every_route_declares_its_role() -> None:
    found = {}
    for method, path, callbacks in routes():
        assert [type(callback) for callback in callbacks] == [Allows], f"{method} {path} is open"
        found[method, path] = callbacks[0].role
    assert found == EXPECTED


def test_there_is_no_address_beside_the_routes() -> None:
    known = {path.lstrip("/").replace("{", "<").replace("}", ">") for _, path, _ in routes()}
    assert {str(address.pattern) for address in addresses()} == {*known, "", "docs"}


def test_the_root_of_the_api_is_nothing(client_as: Callable[[str | None], Caller], problem: Problem) -> None:
    problem(client_as(None).get("/"), 404)


@pytest.mark.parametrize(("method", "path"), sorted(EXPECTED))
def test_a_route_holds_to_its_role(
    method: str, path: str, client_as: Callable[[str | None], Caller], problem: Problem
) -> None:
    address = path.replace("{path:task_id}", "nothing").replace("{name}", "nothing")
    address = re.sub(r"\{uuidstr:\w+\}", "0198a000-0000-7000-8000-000000000000", address)
    anonymous = client_as(None).call(method, address)
    problem(anonymous, 401)
    assert anonymous["WWW-Authenticate"].startswith("Bearer")
    for role in Role:
        response = client_as(role.value).call(method, address)
        if role.includes(EXPECTED[method, path]):
            assert response.status_code in (200, 404, 422)
        else:
            problem(response, 403)


def test_health_is_open(client_as: Callable[[str | None], Caller]) -> None:
    assert client_as(None).get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "header", ["Bearer nonsense", "Bearer ", "Bearer \xe9", "Basic dTpw", "nonsense", ""]
)
def test_a_bad_token_is_refused(
    header: str, client_as: Callable[[str | None], Caller], problem: Problem
) -> None:
    response = client_as(None).get("/tasks", Authorization=header)
    problem(response, 401)
    assert response["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("change", [{"revoked_at": Now()}, {"expires_at": Now() - timedelta(seconds=1)}])
def test_a_token_that_ended_is_refused(viewer: Caller, problem: Problem, change: dict[str, Any]) -> None:
    assert viewer.get("/types").status_code == 200
    Token.objects.update(**change)
    response = viewer.get("/types")
    problem(response, 401)
    assert "invalid_token" in response["WWW-Authenticate"]


def test_the_last_use_is_written_once_a_minute(viewer: Caller) -> None:
    viewer.get("/types")
    first = Token.objects.get().last_used_at
    viewer.get("/types")
    assert first is not None
    assert Token.objects.get().last_used_at == first
    Token.objects.update(last_used_at=timezone.now() - timedelta(seconds=61))
    viewer.get("/types")
    assert (Token.objects.get().last_used_at or first) >= first


def signed_in(*, staff: bool = True, role: str | None = None) -> Client:
    user = User.objects.create_user("ana", password="x", is_staff=staff)
    if role:
        user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    return client


def test_a_session_may_read_as_its_role_allows(db: None, problem: Problem) -> None:
    assert signed_in().get(f"{BASE}/tasks").status_code == 200


def test_a_session_needs_the_csrf_token_to_change_things(db: None, queues: None, problem: Problem) -> None:
    client = signed_in(role="operator")
    document = problem(client.post(f"{BASE}/queues/default/pause", content_type="application/json"), 403)
    assert document["code"] == "csrf_failed"
    secret = "a" * 32
    client.cookies["csrftoken"] = secret
    problem(client.post(f"{BASE}/queues/default/pause", {"csrfmiddlewaretoken": secret}), 415)
    response = client.post(
        f"{BASE}/queues/default/pause", content_type="application/json", headers={"X-CSRFToken": secret}
    )
    assert response.status_code == 200
    assert json.loads(response.content)["paused"] is True


def test_a_session_without_a_role_may_do_nothing(db: None, problem: Problem) -> None:
    problem(signed_in(staff=False).get(f"{BASE}/tasks"), 403)


def test_a_session_does_not_help_a_bad_token(db: None, problem: Problem) -> None:
    problem(signed_in().get(f"{BASE}/tasks", headers={"Authorization": "Bearer nonsense"}), 401)


def test_the_documentation_is_for_staff(db: None) -> None:
    assert Client().get(f"{BASE}/docs").status_code == 302
    page = signed_in().get(f"{BASE}/docs")
    assert page.status_code == 200
    assert b"https://" not in page.content  # nothing is loaded from elsewhere
