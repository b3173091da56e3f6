"""The overview: one honest page for those who may look."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db.models.functions import Now
from django.test import Client

from capataz.lifecycle.submission import submit
from capataz.models import Event, Queue, Task, Worker
from dashboard.census import LINES, census

pytestmark = pytest.mark.django_db


def signed_in(*, staff: bool = True, role: str | None = None) -> Client:
    user = User.objects.create_user("ana", is_staff=staff)
    if role:
        user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


def test_it_needs_a_login() -> None:
    response = Client().get("/dashboard/")
    assert response.status_code == 302
    assert response["Location"] == "/dashboard/login/?next=/dashboard/"


def test_whoever_has_a_role_can_sign_in_and_out() -> None:
    call_command("setup_platform", verbosity=0)
    user = User.objects.create_user("ana", password="a good one")
    user.groups.add(Group.objects.get(name="viewer"))
    client = Client()
    assert client.get("/dashboard/login/").status_code == 200
    page = client.post("/dashboard/login/", {"username": "ana", "password": "bad"})
    assert page.status_code == 200
    response = client.post("/dashboard/login/", {"username": "ana", "password": "a good one"})
    assert response["Location"] == "/dashboard/"
    assert client.get("/dashboard/").status_code == 200
    client.post("/dashboard/logout/")
    assert client.get("/dashboard/").status_code == 302


@pytest.mark.parametrize(
    ("staff", "role", "status"), [(True, None, 200), (False, "viewer", 200), (False, None, 403)]
)
def test_it_is_for_staff_and_for_every_role(staff: bool, role: str | None, status: int) -> None:
    assert signed_in(staff=staff, role=role).get("/dashboard/").status_code == status


def test_it_opens_on_an_empty_platform() -> None:
    page = signed_in().get("/dashboard/").content.decode()
    assert "Nobody works here now" in page


def test_it_shows_what_is_there() -> None:
    User.objects.create_user("somebody")
    call_command("setup_platform", verbosity=0)
    submit("demo.echo")
    Queue.objects.filter(name="email").update(paused_at=Now(), pause_reason="repairs")
    Worker.objects.create(name="w1@here", host="here", pid=1, phase="running")
    Event.objects.create(at=Now(), kind="task.lost", subject="<script>", detail={"error": "<b>", "n": 1})
    page = signed_in().get("/dashboard/").content.decode()
    for text in ("w1@here", "repairs", "task.lost", "&lt;script&gt;", "error: &lt;b&gt;"):
        assert text in page
    assert "<script>," not in page
    assert "https://" not in page  # nothing is loaded from elsewhere


def test_the_census_counts_every_state() -> None:
    worker = Worker.objects.create(name="w", host="h", pid=1)
    held: dict[str, Any] = {"run": 1, "worker_id": worker.pk, "released_at": Now()}
    ended: dict[str, Any] = {"finished_at": Now()}
    changes = {
        "claimed": held,
        "running": held,
        "succeeded": ended,
        "dead": ended,
        "cancelled": ended,
        "expired": ended,
    }
    for state in (
        "scheduled",
        "queued",
        "claimed",
        "running",
        "retrying",
        "succeeded",
        "dead",
        "cancelled",
        "expired",
    ):
        task = submit("demo.echo")
        Task.objects.filter(pk=task.pk).update(state=state, **changes.get(state, {}))
    released = submit("demo.echo")
    Task.objects.filter(pk=released.pk).update(released_at=Now())
    counts = {line.name.lower(): (line.count.value, line.count.exact) for line in census()}
    assert counts == {name.lower(): (2 if name == "Queued" else 1, True) for name in LINES}
