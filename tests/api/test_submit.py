"""Submitting over HTTP: 202 with the task, or a problem that names every fault."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capataz.api.schemas import TaskOut
from capataz.models import Queue, Task
from tests.api.conftest import Caller

Problem = Callable[[Any, int], dict[str, Any]]


def test_an_accepted_task_is_answered_with_its_address(producer: Caller, viewer: Caller) -> None:
    response = producer.post("/tasks", {"type": "demo.echo", "data": {"message": "hola"}, "priority": "alta"})
    assert response.status_code == 202
    document = json.loads(response.content)
    TaskOut.model_validate(document)
    assert document["status"] == "pending"
    assert document["state"] == "queued"
    assert document["priority"] == 8
    assert document["data"] == {"message": "hola"}
    assert response["Location"] == f"/api/v1/tasks/{document['id']}"
    assert json.loads(viewer.get(response["Location"]).content) == document


def test_payload_is_another_name_for_data(producer: Caller) -> None:
    response = producer.post("/tasks", {"type": "demo.echo", "payload": {"message": 1}, "attempts": 7})
    document = json.loads(response.content)
    assert (document["data"], document["maxAttempts"]) == ({"message": 1}, 7)


def test_options_reach_the_row(producer: Caller) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    body = {
        "type": "demo.echo", "id": "order/7", "queue": "default", "runAt": due.isoformat(), "timeout": 1500,
        "expiresAt": (due + timedelta(hours=1)).isoformat(), "maxAttempts": 2, "priority": 0,
    }  # fmt: skip
    document = json.loads(producer.post("/tasks", body).content)
    task = Task.objects.get(pk=document["id"])
    assert (task.key, task.queue, task.time_limit, task.max_attempts) == ("order/7", "default", 1.5, 2)
    assert (task.run_at, task.expires_at, task.state) == (due, due + timedelta(hours=1), "scheduled")
    assert task.submitted_by == "token test producer"


def test_a_delay_is_milliseconds(producer: Caller) -> None:
    document = json.loads(producer.post("/tasks", {"type": "demo.echo", "delay": 90_000}).content)
    task = Task.objects.get(pk=document["id"])
    assert task.run_at is not None
    assert abs(task.run_at - task.created_at - timedelta(seconds=90)) < timedelta(seconds=2)


def test_the_same_id_and_task_twice_is_one_task(producer: Caller, problem: Problem) -> None:
    body = {"type": "demo.echo", "id": "once", "data": {"message": 1}}
    first, second = producer.post("/tasks", body), producer.post("/tasks", body)
    assert first.status_code == second.status_code == 202
    assert json.loads(first.content)["id"] == json.loads(second.content)["id"]
    other = problem(producer.post("/tasks", {**body, "data": {"message": 2}}), 409)
    assert other["code"] == "conflict"


def test_every_fault_is_named(producer: Caller, problem: Problem) -> None:
    body = {
        "type": "demo.sleep",
        "data": {"seconds": -1, "other": 1},
        "priority": 11,
        "maxAttempts": 0,
        "queue": "no",
    }
    document = problem(producer.post("/tasks", body), 422)
    pointers = {error["pointer"] for error in document["errors"]}
    assert pointers == {"/data/seconds", "/data/other", "/priority", "/maxAttempts", "/queue"}


def test_a_fault_of_form_hides_no_other(producer: Caller, problem: Problem) -> None:
    wrong = {"type": "demo.sleep", "data": {"seconds": -1}, "delay": "x", "priority": 99, "maxAttempts": 0}
    wrong |= {"queue": "no", "foo": 1, "timeout": 0}
    names = {"/data/seconds", "/delay", "/priority", "/maxAttempts", "/queue", "/foo", "/timeout"}
    document = problem(producer.post("/tasks", wrong), 422)
    assert {error["pointer"] for error in document["errors"]} == names
    document = problem(producer.post("/tasks/bulk", {"tasks": [{"type": "demo.echo"}, wrong]}), 422)
    assert {error["pointer"] for error in document["errors"]} == {f"/tasks/1{name}" for name in names}
    document = problem(producer.post("/tasks", {"priority": 99, "maxAttempts": 0}), 422)
    assert {error["pointer"] for error in document["errors"]} == {"/type", "/priority", "/maxAttempts"}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"type": "no.such"}, "/type"),
        ({"type": 7}, "/type"),
        ({"type": "x" * 65}, "/type"),
        ({"priority": True}, "/priority"),
        ({"priority": "urgent!"}, "/priority"),
        ({"runAt": "2030-01-01T00:00:00"}, "/runAt"),
        ({"runAt": 1893456000}, "/runAt"),
        ({"runAt": "9999-12-31T23:59:59-23:59"}, "/runAt"),
        ({"runAt": "0001-01-01T00:00:00+23:59"}, "/runAt"),
        ({"delay": -1}, "/delay"),
        ({"delay": 1e300}, "/delay"),
        ({"timeout": 0}, "/timeout"),
        ({"timeout": 1e12}, "/timeout"),
        ({"id": ""}, "/id"),
        ({"id": "x" * 256}, "/id"),
        ({"id": "a\nb"}, "/id"),
        ({"id": "bulk"}, "/id"),
        ({"id": "a/cancel"}, "/id"),
        ({"unknown": 1}, "/unknown"),
        ({"payload": {}}, "/"),
        ({"runAt": "2030-01-01T00:00:00Z", "delay": 5}, "/"),
        ({"data": "text"}, "/data"),
    ],
)
def test_a_bad_option_is_named(
    producer: Caller, problem: Problem, change: dict[str, Any], pointer: str
) -> None:
    document = problem(producer.post("/tasks", {"type": "demo.echo", "data": {}, **change}), 422)
    assert pointer in {error["pointer"] for error in document["errors"]}
    assert not Task.objects.exists()


def test_what_was_sent_is_not_repeated(producer: Caller) -> None:
    secret = "hunter2-very-secret"
    for body in ({"type": "demo.sleep", "data": {"seconds": secret}}, {"type": "demo.echo", "runAt": secret},
                 {"type": "demo.echo", "priority": secret[:16]}):  # fmt: skip
        response = producer.post("/tasks", body)
        assert response.status_code == 422
        assert secret[:16] not in response.content.decode()


@pytest.mark.parametrize("body", [[], None, 7, "text", {}, {"tasks": []}])
def test_a_body_of_another_form_is_refused(producer: Caller, problem: Problem, body: Any) -> None:
    for path in ("/tasks", "/tasks/bulk"):
        problem(producer.post(path, json.dumps(body).encode()), 422)


def test_an_empty_body_is_refused(producer: Caller, problem: Problem) -> None:
    problem(producer.post("/tasks"), 422)


def test_only_json_is_taken(producer: Caller, problem: Problem) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        problem(producer.post("/tasks", b'{"type": "demo.echo"}', **{"Content-Type": kind}), 415)


def test_a_body_that_is_too_large_is_refused(producer: Caller, problem: Problem) -> None:
    body = json.dumps({"type": "demo.echo", "data": {"message": "x" * 1024 * 1024}}).encode()
    problem(producer.post("/tasks", body), 413)


def test_a_payload_that_is_too_large_is_refused(producer: Caller, problem: Problem) -> None:
    document = problem(
        producer.post("/tasks", {"type": "demo.echo", "data": {"message": "x" * 300_000}}), 422
    )
    assert document["errors"][0]["code"] == "too_large"


def test_a_chunked_body_is_refused(producer: Caller, problem: Problem) -> None:
    response = producer.call("POST", "/tasks", None, **{"Transfer-Encoding": "chunked"})
    problem(response, 411)


def test_thousands_are_accepted_with_one_statement(producer: Caller) -> None:
    body = json.dumps(
        {"tasks": [{"type": "demo.echo", "data": {"message": n}} for n in range(5000)]}
    ).encode()
    with CaptureQueriesContext(connection) as queries:
        start = time.process_time()
        response = producer.post("/tasks/bulk", body)
        seconds = time.process_time() - start
    assert response.status_code == 202
    document = json.loads(response.content)
    assert document["count"] == 5000 == Task.objects.count()
    assert document["ids"][4999] == str(Task.objects.get(payload={"message": 4999}).pk)
    assert len(queries) < 10
    assert seconds < 2


def test_one_bad_task_refuses_all(producer: Caller, problem: Problem) -> None:
    tasks: list[Any] = [{"type": "demo.echo"} for _ in range(10)]
    tasks[3] = {"type": "demo.sleep", "data": {"seconds": "long"}}
    document = problem(producer.post("/tasks/bulk", {"tasks": tasks}), 422)
    assert [error["pointer"] for error in document["errors"]] == ["/tasks/3/data/seconds"]
    document = problem(producer.post("/tasks/bulk", {"tasks": [tasks[3]]}), 422)
    assert [error["pointer"] for error in document["errors"]] == ["/tasks/0/data/seconds"]
    assert not Task.objects.exists()


def test_a_full_queue_answers_503_and_when_to_come_again(
    producer: Caller, queues: None, problem: Problem
) -> None:
    Queue.objects.filter(name="default").update(waiting_limit=2)
    first = producer.post("/tasks", {"type": "demo.echo", "id": "order 7"})
    assert first.status_code == 202
    two = {"tasks": [{"type": "demo.echo"}, {"type": "demo.echo"}]}
    refused = producer.post("/tasks/bulk", two)
    document = problem(refused, 503)
    assert document["code"] == "queue_full"
    assert (document["queue"], document["waitingLimit"], document["waiting"]) == ("default", 2, 1)
    assert int(refused["Retry-After"]) > 0
    assert Task.objects.count() == 1
    assert producer.post("/tasks", {"type": "demo.echo"}).status_code == 202
    problem(producer.post("/tasks", {"type": "demo.echo"}), 503)
    again = producer.post("/tasks", {"type": "demo.echo", "id": "order 7"})
    assert json.loads(again.content)["id"] == json.loads(first.content)["id"]


def test_an_id_named_twice_in_one_call_must_be_one_task(producer: Caller, problem: Problem) -> None:
    for name in ("twice", str(uuid.uuid4())):
        one, other = ({"type": "demo.echo", "id": name, "data": {"message": n}} for n in (1, 2))
        problem(producer.post("/tasks/bulk", {"tasks": [one, other]}), 409)
        assert not Task.objects.exists()
        same = json.loads(producer.post("/tasks/bulk", {"tasks": [one, one]}).content)
        assert same["ids"][0] == same["ids"][1]
        Task.objects.all().delete()


def test_more_than_the_cap_is_refused(producer: Caller, problem: Problem) -> None:
    body = b'{"tasks": [' + b",".join([b'{"type":"demo.echo"}'] * 50_001) + b"]}"
    document = problem(producer.post("/tasks/bulk", body), 422)
    assert document["errors"][0]["code"] == "too_long"


OPTIONS = ["id", "data", "payload", "priority", "queue", "runAt", "delay", "expiresAt", "attempts", "timeout"]
SUSPECTS = [
    "demo.echo",
    "default",
    "2030-01-01T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "alta",
    "\x00",
    "\ud800",
]

names = st.sampled_from([*OPTIONS, "type", "tasks", "message"]) | st.text(max_size=4)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(SUSPECTS)
)
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)
submissions = st.fixed_dictionaries(
    {"type": st.just("demo.echo") | leaves}, optional=dict.fromkeys(OPTIONS, documents)
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(body=submissions | documents, bulk=st.booleans())
def test_no_json_makes_the_server_fail(producer: Caller, viewer: Caller, body: Any, bulk: bool) -> None:
    sent = {"tasks": [body]} if bulk else body
    response = producer.post("/tasks/bulk" if bulk else "/tasks", json.dumps(sent).encode())
    assert response.status_code in (202, 409, 422), response.content
    if response.status_code == 202:
        assert viewer.get("/tasks?limit=1").status_code == 200
    else:
        assert response["Content-Type"] == "application/problem+json"


def test_a_task_may_be_unique(producer: Caller, problem: Problem) -> None:
    wanted = {"type": "demo.echo", "data": {"message": 1}, "unique": {"by": ["payload.message"]}}
    first = json.loads(producer.post("/tasks", wanted).content)["id"]
    assert json.loads(producer.post("/tasks", wanted).content)["id"] == first
    rejecting = {**wanted, "unique": {"by": ["payload.message"], "mode": "reject"}}
    assert problem(producer.post("/tasks", rejecting), 409)["id"] == first
    wrong = {**wanted, "unique": {"mode": "debounce"}, "uniqueKey": ""}
    told = problem(producer.post("/tasks", wrong), 422)["errors"]
    assert {each["pointer"] for each in told} == {"/unique", "/uniqueKey"}
