"""The admin's pages: look at everything, write nothing by hand, act through verbs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Attempt, Circuit, Event, Queue, Report, Schedule, Task, Token, TypePolicy, Worker
from capataz.models.token import digest_of

PLACES = ["task", "worker", "queue", "event", "token"]


@pytest.fixture(autouse=True)
def platform_is_set_up(db: None) -> None:
    User.objects.create_superuser("root", password="x")
    call_command("setup_platform", verbosity=0)


def signed_in(role: str | None = None) -> Client:
    user = User.objects.get(username="root")
    if role:
        user = User.objects.create_user(role, is_staff=True)
        user.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(user)
    return client


def act(client: Client, place: str, action: str, *ids: Any) -> str:
    response = client.post(
        f"/admin/capataz/{place}/",
        {"action": action, "_selected_action": [str(each) for each in ids]},
        follow=True,
    )
    assert response.status_code == 200
    return response.content.decode()


def filled() -> Task:
    worker = Worker.objects.create(name="w1@here", host="here", pid=1)
    task = submit("demo.echo", {"message": "<script>alert(1)</script>"}, key="order <b>7</b>")
    Task.objects.filter(pk=task.pk).update(
        state="running", run=1, worker_id=worker.pk, released_at=Now(), started_at=Now()
    )
    Attempt.objects.create(
        task_id=task.pk, run=1, worker_id=worker.pk, outcome="failed", started_at=timezone.now(),
        finished_at=timezone.now(), error="<i>no</i>", traceback="Traceback <b>",
    )  # fmt: skip
    Event.objects.create(at=Now(), kind="task.lost", task_id=task.pk, subject="x")
    Token.issue(name="t", role="viewer")  # type: ignore[arg-type]
    return task


@pytest.mark.parametrize("place", PLACES)
def test_every_list_opens(place: str) -> None:
    filled()
    response = signed_in().get(f"/admin/capataz/{place}/")
    assert response.status_code == 200


@pytest.mark.parametrize("place", PLACES)
def test_every_page_opens_and_saves_nothing(place: str) -> None:
    filled()
    model = {"task": Task, "worker": Worker, "queue": Queue, "event": Event, "token": Token}[place]
    address = f"/admin/capataz/{place}/{model._default_manager.first().pk}/change/"  # type: ignore[union-attr]
    client = signed_in()
    assert client.get(address).status_code == 200
    # A queue's form has its limit, and nothing else.
    assert client.post(address, {}).status_code == (302 if place == "queue" else 403)
    assert client.post(address.replace("change", "delete")).status_code == 403
    if place != "token":
        assert client.get(f"/admin/capataz/{place}/add/").status_code == 403


def test_a_task_shows_its_attempts_and_nothing_as_markup() -> None:
    task = filled()
    page = signed_in().get(f"/admin/capataz/task/{task.pk}/change/").content.decode()
    assert "w1@here" in page
    assert "&lt;i&gt;no&lt;/i&gt;" in page
    for markup in ("<script>alert", "<i>no", "Traceback <b>"):
        assert markup not in page


def test_a_list_asks_few_questions_and_reads_no_payloads() -> None:
    submit_many([Submission(type="demo.echo") for _ in range(60)])
    client = signed_in()
    client.get("/admin/capataz/task/")
    with CaptureQueriesContext(connection) as queries:
        client.get("/admin/capataz/task/")
    about_tasks = [query["sql"] for query in queries if "capataz_task" in query["sql"]]
    assert len(about_tasks) <= 3
    assert not any('"payload"' in sql for sql in about_tasks)
    assert not any("COUNT(*)" in sql and "LIMIT" not in sql for sql in about_tasks)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 2), ("?state=running", 1), ("?state=queued", 1), ("?state=dead", 0), ("?type=demo.echo", 2),
        ("?type=no", 0), ("?queue=default", 2), ("?queue=maintenance", 0), ("?priority=5", 2),
        ("?priority=9", 0), ("?priority=x", 0), ("?q=order+<b>7</b>", 1), ("?q=order", 0), ("?p=500", None),
    ],
)  # fmt: skip
def test_filters_and_search(query: str, count: int | None) -> None:
    filled()
    submit("demo.echo")
    response = signed_in().get(f"/admin/capataz/task/{query}")
    if count is None:
        assert response.status_code in (200, 302)
    else:
        assert response.context["cl"].result_count == count


def test_a_task_is_found_by_its_exact_id() -> None:
    task = filled()
    response = signed_in().get(f"/admin/capataz/task/?q={task.pk}")
    assert response.context["cl"].result_count == 1


def test_tasks_are_cancelled_and_refusals_counted() -> None:
    waiting, done = submit("demo.echo"), submit("demo.echo")
    Task.objects.filter(pk=done.pk).update(state="succeeded", finished_at=Now())
    page = act(signed_in(), "task", "cancel", waiting.pk, done.pk)
    assert "1 cancelled" in page
    assert "1 refused" in page
    waiting.refresh_from_db()
    assert waiting.state == "cancelled"
    assert Event.objects.get(task_id=waiting.pk).detail["by"] == "root"


def test_tasks_are_retried() -> None:
    task = submit("demo.echo")
    Task.objects.filter(pk=task.pk).update(state="dead", finished_at=Now())
    assert "1 queued again" in act(signed_in("operator"), "task", "retry", task.pk)
    task.refresh_from_db()
    assert task.state == "queued"


def test_queues_are_paused_and_resumed() -> None:
    client = signed_in("operator")
    assert "1 paused" in act(client, "queue", "pause", "default")
    assert Queue.objects.get(name="default").is_paused
    assert "1 resumed" in act(client, "queue", "resume", "default")
    assert not Queue.objects.get(name="default").is_paused


def set_limit(client: Client, limit: object) -> str:
    form = {"waiting_limit": limit, "name": "other", "pause_reason": "by hand"}
    response = client.post("/admin/capataz/queue/default/change/", form, follow=True)
    return response.content.decode()


def test_a_queue_gets_a_limit_and_loses_it() -> None:
    submit("demo.echo", delay=60)
    client = signed_in("operator")
    assert "was changed successfully" in set_limit(client, 7)
    assert Queue.objects.get(name="default").waiting_limit == 7
    assert Event.objects.get(kind="queue.limited").detail == {"limit": 7, "by": "operator"}
    row = (
        '<td class="field-waiting">0</td><td class="field-later">1</td><td class="field-waiting_limit">7</td>'
    )
    assert row in client.get("/admin/capataz/queue/").content.decode()
    assert "greater than or equal to 1" in set_limit(client, 0)
    set_limit(client, "")
    assert Queue.objects.get(name="default").waiting_limit is None
    assert not Queue.objects.filter(name="other").exists()
    assert not Queue.objects.exclude(pause_reason="").exists()


@pytest.mark.parametrize("role", ["viewer", "producer"])
def test_who_may_only_look_cannot_act(role: str) -> None:
    task = submit("demo.echo")
    client = signed_in(role)
    assert client.get("/admin/capataz/task/").status_code == 200
    for action in ("cancel", "retry"):
        act(client, "task", action, task.pk)
    act(client, "queue", "pause", "default")
    set_limit(client, 7)
    task.refresh_from_db()
    assert task.state == "queued"
    assert not Queue.objects.get(name="default").is_paused
    assert Queue.objects.get(name="default").waiting_limit is None
    assert client.get("/admin/capataz/token/").status_code == 403


def issue(client: Client, role: str = "operator") -> HttpResponse:
    data = {"name": "deploy", "role": role, "expires_at_0": "", "expires_at_1": ""}
    return client.post("/admin/capataz/token/add/", data)  # type: ignore[return-value]


def test_a_token_is_issued_and_its_secret_shown_once() -> None:
    client = signed_in("admin")
    response = issue(client)
    assert response.status_code == 200
    assert "no-store" in response["Cache-Control"]
    secret = response.content.decode().split('<code id="secret">')[1].split("<")[0]
    token = Token.objects.get()
    assert token.digest == digest_of(secret)
    for page in (f"/admin/capataz/token/{token.pk}/change/", "/admin/capataz/token/", "/admin/"):
        assert secret not in client.get(page).content.decode()
    assert secret not in str(client.cookies)


def test_a_token_is_revoked() -> None:
    client = signed_in("admin")
    issue(client)
    assert "1 revoked" in act(client, "token", "revoke", Token.objects.get().pk)
    assert not Token.objects.valid().exists()


def test_an_operator_issues_no_tokens() -> None:
    assert issue(signed_in("operator")).status_code == 403
    assert not Token.objects.exists()


def test_the_schedules_have_their_own_pages() -> None:
    assert signed_in().get("/admin/django_celery_beat/periodictask/").status_code == 200


def test_a_schedules_policy_is_chosen_on_its_page() -> None:
    interval = IntervalSchedule.objects.create(every=1, period="hours")
    schedule = PeriodicTask.objects.create(name="hourly", task="demo.echo", interval=interval)
    client, page = signed_in("admin"), f"/admin/django_celery_beat/periodictask/{schedule.pk}/change/"
    assert "Downtimes and overlaps" in client.get(page).content.decode()
    form = {"name": "hourly", "regtask": "demo.echo", "task": "", "interval": interval.pk, "enabled": "on"}
    form |= {"args": "[]", "kwargs": "{}", "headers": "{}"}
    inline = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 0, "0-periodic_task": schedule.pk}
    inline |= {"0-missed": "all", "0-missed_limit": 7, "0-overlap": "queue"}
    answer = client.post(page, form | {f"capataz-{name}": value for name, value in inline.items()})
    assert answer.status_code == 302, answer.content.decode()
    policy = Schedule.objects.get(pk=schedule.pk)
    assert (policy.missed, policy.missed_limit, policy.overlap) == ("all", 7, "queue")


def test_circuits_are_opened_closed_and_reset(db: None) -> None:
    circuit = Circuit.objects.create(name="api.example.org")
    client = signed_in("operator")
    for action, state, forced in (
        ("force_open", "OPEN", True),
        ("force_closed", "CLOSED", True),
        ("reset", "CLOSED", False),
    ):
        act(client, "circuit", action, circuit.pk)
        circuit.refresh_from_db()
        assert (circuit.state, circuit.forced) == (state, forced)
    assert client.get("/admin/capataz/circuit/api.example.org/change/").status_code == 200
    act(signed_in("viewer"), "circuit", "force_open", circuit.pk)
    circuit.refresh_from_db()
    assert circuit.state == "CLOSED"
    assert Event.objects.filter(kind="circuit.opened", detail__by="operator").count() == 1


def test_a_types_policy_is_overridden_on_its_page_and_a_bad_one_names_its_field() -> None:
    client, page = signed_in("operator"), "/admin/capataz/typepolicy/add/"
    bad = client.post(page, {"name": "demo.echo", "override": '{"limits": [{"rate": "often"}]}'})
    assert "override/limits/0/rate" in bad.content.decode()
    unknown = client.post(page, {"name": "nope", "override": "{}"})
    assert "must be one of" in unknown.content.decode()
    client.post(page, {"name": "demo.echo", "override": '{"limits": [{"concurrency": 2}]}'})
    policy = TypePolicy.objects.get()
    change = f"/admin/capataz/typepolicy/{policy.pk}/"
    client.post(f"{change}change/", {"override": '{"limits": [{"concurrency": 3}]}'})
    assert TypePolicy.objects.get().override == {"limits": [{"concurrency": 3}]}
    client.post(f"{change}delete/", {"post": "yes"})
    assert not TypePolicy.objects.exists()
    assert Event.objects.filter(kind="type.overridden").count() == 3
    assert signed_in("viewer").get(page).status_code == 403


def test_reports_are_downloaded_from_their_list(db: None) -> None:
    made = uuid.uuid4()
    Report.objects.keep(made, "<b>Ventas</b>", {"pdf": b"%PDF", "md": b"#"})
    client = signed_in("viewer")
    page = client.get("/admin/capataz/report/").content.decode()
    assert "&lt;b&gt;Ventas" in page
    for format in ("md", "pdf"):
        assert f'href="/api/v1/reports/{made}?format={format}"' in page
    assert client.get(f"/admin/capataz/report/{made}/change/").status_code == 200
    assert client.get(f"/api/v1/reports/{made}?format=pdf").content == b"%PDF"
    nobody = User.objects.create_user("nobody", is_staff=True)
    client.force_login(nobody)
    assert client.get("/admin/capataz/report/").status_code == 403
