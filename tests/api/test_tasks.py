"""Looking at tasks, and cancelling and retrying them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.http import HttpResponse
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capataz.api.schemas import LogPage, TaskItem, TaskOut
from capataz.keyring import new_key
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Attempt, Event, LogLine, Task, Worker
from tests.api.conftest import Caller

Problem = Callable[[Any, int], dict[str, Any]]


def read(response: HttpResponse) -> Any:
    assert response.status_code == 200, response.content
    return json.loads(response.content)


def attempt(task: Task, worker: Worker, outcome: str, seconds: float, **changes: Any) -> Attempt:
    now = timezone.now()
    return Attempt.objects.create(
        task_id=task.pk, run=1, worker_id=worker.pk, outcome=outcome,
        started_at=now - timedelta(seconds=seconds), finished_at=now, **changes,
    )  # fmt: skip


@pytest.fixture
def worker(db: None) -> Worker:
    return Worker.objects.create(name="w1@here", host="here", pid=1)


def test_a_task_is_found_by_both_its_ids(viewer: Caller) -> None:
    task = submit("demo.echo", {"message": "ñ"}, key="orders/7 ñ")
    for name in (str(task.pk), task.pk.hex, "orders/7%20%C3%B1"):
        document = read(viewer.get(f"/tasks/{name}"))
        TaskOut.model_validate(document)
        assert (document["id"], document["key"]) == (str(task.pk), "orders/7 ñ")


@pytest.mark.parametrize(
    "name", ["nothing", str(uuid.UUID(int=7)), "%00", "%ff", "x" * 300, "a/b/c", "%0a", ".."]
)
def test_an_unknown_id_is_not_found(viewer: Caller, operator: Caller, problem: Problem, name: str) -> None:
    problem(viewer.get(f"/tasks/{name}"), 404)
    problem(operator.post(f"/tasks/{name}/cancel"), 404)
    problem(operator.post(f"/tasks/{name}/retry"), 404)


def test_attempts_are_told_in_order(viewer: Caller, worker: Worker, end_as: Callable[..., Task]) -> None:
    task = submit("demo.echo")
    attempt(task, worker, "failed", 2, error="ValueError: no", traceback="Traceback ...")
    attempt(task, worker, "succeeded", 0.5)
    end_as(task, "succeeded", attempts=2, result={"a": 1}, started_at=Now() - timedelta(seconds=0.5))
    document = read(viewer.get(f"/tasks/{task.pk}"))
    TaskOut.model_validate(document)
    assert [(card["number"], card["outcome"], card["runMs"]) for card in document["attempts"]] == [
        (1, "failed", 2000),
        (2, "succeeded", 500),
    ]
    assert document["attempts"][0]["traceback"] == "Traceback ..."
    assert document["attempts"][0]["worker"] == document["worker"] == document["assignedTo"] == "w1@here"
    assert (document["status"], document["state"], document["result"]) == ("completed", "succeeded", {"a": 1})
    assert (document["retries"], document["executionTimeMs"]) == (1, 500)


def test_a_running_task_shows_who_runs_it(viewer: Caller, worker: Worker) -> None:
    task = submit("demo.echo")
    Task.objects.filter(pk=task.pk).update(
        state="running", run=5, worker_id=worker.pk, released_at=Now(), started_at=Now(), attempts=1,
        progress=40, progress_message="half",
    )  # fmt: skip
    document = read(viewer.get(f"/tasks/{task.pk}"))
    assert (document["status"], document["worker"], document["retries"]) == ("inProgress", "w1@here", 1)
    assert (document["progress"], document["progressMessage"]) == (40, "half")
    assert document["executionTimeMs"] is None


def test_times_are_utc_with_milliseconds(viewer: Caller) -> None:
    task = submit("demo.echo", delay=60)
    document = read(viewer.get(f"/tasks/{task.pk}"))
    for name in ("createdAt", "runAt"):
        assert len(document[name]) == len("2030-01-31T12:00:00.000Z")
        assert document[name].endswith("Z")


def test_pages_follow_each_other_newest_first(viewer: Caller, worker: Worker) -> None:
    ids = submit_many([Submission(type="demo.echo", data={"message": n}) for n in range(7)])
    seen: list[str] = []
    address = "/tasks?limit=3"
    for _ in range(3):
        response = viewer.get(address)
        page = read(response)
        seen += [item["id"] for item in page["items"]]
        for item in page["items"]:
            TaskItem.model_validate(item)
        if page["nextCursor"]:
            assert response["Link"] == f'</api/v1/tasks?limit=3&cursor={page["nextCursor"]}>; rel="next"'
            address = f"/tasks?limit=3&cursor={page['nextCursor']}"
    assert page["nextCursor"] is None
    assert "Link" not in response
    assert seen == [str(each) for each in reversed(ids)]


def test_a_list_asks_few_questions(viewer: Caller, worker: Worker) -> None:
    for each in submit_many([Submission(type="demo.echo") for _ in range(20)]):
        attempt(Task.objects.get(pk=each), worker, "failed", 1)
    Task.objects.update(started_at=Now())
    viewer.get("/tasks")
    with CaptureQueriesContext(connection) as queries:
        page = read(viewer.get("/tasks"))
    assert {item["worker"] for item in page["items"]} == {"w1@here"}
    assert len([query for query in queries if query["sql"].startswith("SELECT")]) <= 4


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("status=pending", 2), ("status=completed", 1), ("status=failed", 1), ("status=dead", 1),
        ("status=scheduled", 1), ("status=cancelled", 0), ("status=inProgress", 0),
        ("status=in_progress", 0), ("status=active", 0), ("status=dead&status=completed", 2),
        ("type=demo.echo", 3), ("type=demo.sleep", 1),
        ("type=no.such", 0), ("queue=default", 4), ("queue=other", 0), ("type=demo.echo&status=queued", 1),
    ],
)  # fmt: skip
def test_filters(viewer: Caller, end_as: Callable[..., Task], query: str, count: int) -> None:
    end_as(submit("demo.echo"), "succeeded")
    end_as(submit("demo.sleep"), "dead")
    submit("demo.echo")
    submit("demo.echo", delay=100)
    assert len(read(viewer.get(f"/tasks?{query}"))["items"]) == count


@pytest.mark.parametrize(
    "query",
    ["status=nonsense", "status=", "status=%00", "limit=0", "limit=201", "limit=x", "cursor=nonsense",
     "type=%00", "type=0A", "queue=%0A"],
)  # fmt: skip
def test_a_bad_filter_is_refused(viewer: Caller, problem: Problem, query: str) -> None:
    document = problem(viewer.get(f"/tasks?{query}"), 422)
    assert document["errors"][0]["pointer"].startswith(f"/query/{query.split('=', maxsplit=1)[0]}")


def test_a_waiting_task_is_cancelled_once(operator: Caller) -> None:
    task = submit("demo.echo")
    for _ in range(2):
        document = read(operator.post(f"/tasks/{task.pk}/cancel", {"reason": "wrong order"}))
        assert document["status"] == "cancelled"
    event = Event.objects.get(task_id=task.pk)
    assert event.kind == "task.cancelled"
    assert event.detail["because"] == "wrong order"
    assert event.detail["by"] == "token test operator"


def test_a_dead_task_is_retried(operator: Caller, end_as: Callable[..., Task]) -> None:
    task = end_as(submit("demo.echo"), "dead", attempts=3)
    document = read(operator.post(f"/tasks/{task.pk}/retry"))
    assert (document["state"], document["retries"]) == ("queued", 0)


def test_an_illegal_move_is_a_conflict(
    operator: Caller, end_as: Callable[..., Task], problem: Problem
) -> None:
    task = end_as(submit("demo.echo"), "succeeded")
    for verb in ("cancel", "retry"):
        document = problem(operator.post(f"/tasks/{task.pk}/{verb}"), 409)
        assert document["state"] == "succeeded"


@pytest.mark.parametrize("body", [{"reason": 7}, {"reason": "x" * 201}, {"other": 1}, []])
def test_a_bad_reason_is_refused(operator: Caller, problem: Problem, body: Any) -> None:
    task = submit("demo.echo")
    problem(operator.post(f"/tasks/{task.pk}/cancel", body), 422)


def test_empty_bodies_are_welcome(operator: Caller) -> None:
    task = submit("demo.echo")
    assert read(operator.post(f"/tasks/{task.pk}/cancel", {}))["status"] == "cancelled"
    assert read(operator.post(f"/tasks/{task.pk}/retry", {}))["status"] == "pending"


def test_secrets_are_masked_for_all_and_shown_to_an_admin_who_asks(client_as):
    task = submit("testing.login", {"user": "ann", "password": "hunter2", "headers": {"X": "y"}})
    shown = {"user": "ann", "password": "[masked]", "headers": {"X": "[masked]"}}
    address = f"/tasks/{task.pk}"
    for role in ("viewer", "producer", "operator", "admin"):
        caller = client_as(role)
        assert caller.get(address).json()["data"] == shown
        assert caller.get("/tasks").json()["items"][0]["data"] == shown
        if role != "admin":
            refused = caller.get(f"{address}?reveal=true")
            assert refused.status_code == 403 and "hunter2" not in refused.content.decode()
    assert not Event.objects.filter(kind="task.revealed").exists()
    assert client_as("admin").get(f"{address}?reveal=true").json()["data"]["password"] == "hunter2"
    assert Event.objects.get(kind="task.revealed").detail["by"] == "token test admin"


def test_a_secret_whose_key_is_gone_is_a_problem_that_says_so(client_as, settings):
    task = submit("testing.login", {"user": "ann", "password": "hunter2"})
    settings.ENCRYPTION_KEYS = [new_key("other")]
    answered = client_as("admin").get(f"/tasks/{task.pk}?reveal=true")
    assert answered.status_code == 409 and answered.json()["code"] == "cannot_decrypt"


def test_the_log_is_paged_and_can_be_followed(viewer, db):
    task = submit("demo.echo")
    moment = timezone.now()
    for number, level in enumerate([10, 20, 25, 30, 50]):
        LogLine.objects.create(
            at=moment, task_id=task.pk, run=7, level=level, logger="x", message=f"{number}"
        )
    first = read(viewer.get(f"/tasks/{task.pk}/logs?limit=3"))
    assert [line["level"] for line in first["items"]] == ["debug", "info", "info"]
    assert LogPage(**first).items[0].message == "0" and first["items"][0]["run"] == 7
    rest = read(viewer.get(f"/tasks/{task.pk}/logs?cursor={first['nextCursor']}"))
    assert [line["level"] for line in rest["items"]] == ["warning", "error"]
    assert read(viewer.get(f"/tasks/{task.pk}/logs?cursor={rest['nextCursor']}"))["items"] == []
    assert viewer.get("/tasks/nothing/logs").status_code == 404
