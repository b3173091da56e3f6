"""The options of a submission, by our names and by those that clients of other queues know."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F

from capataz import handlers
from capataz.database import database_now
from capataz.errors import InvalidSubmission
from capataz.lifecycle.retention import prune
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests.api.conftest import Caller

Problem = Callable[[Any, int], dict[str, Any]]

ASKED = {
    "priority": 8,
    "delay": 5000,
    "timeout": 60_000,
    "attempts": 4,
    "backoff": {"type": "exponential", "delay": 2000, "jitter": "none"},
    "removeOnComplete": 100,
    "removeOnFail": {"age": 3600, "count": 1000},
}
KEEP = {"succeeded": {"count": 100}, "dead": {"age": 3600, "count": 1000}}


def is_as_asked(task: Task) -> bool:
    in_the_same_transaction = database_now()
    waits = task.run_at and task.run_at - in_the_same_transaction
    found = (task.priority, task.time_limit, task.max_attempts, json.loads(task.backoff or ""), task.keep)
    return found == (8, 60, 4, ASKED["backoff"], KEEP) and waits == timedelta(seconds=5)


def test_every_option_reaches_the_task(producer: Caller, viewer: Caller) -> None:
    document = json.loads(producer.post("/tasks", {"type": "demo.echo", **ASKED}).content)
    assert is_as_asked(Task.objects.get(pk=document["id"]))
    assert (document["backoff"], document["keep"]) == (ASKED["backoff"], KEEP)
    [bulk] = json.loads(producer.post("/tasks/bulk", {"tasks": [{"type": "demo.echo", **ASKED}]}).content)[
        "ids"
    ]
    assert is_as_asked(Task.objects.get(pk=bulk))


@pytest.mark.django_db
def test_they_work_from_python_and_from_celery_too() -> None:
    in_python = {"max_attempts": 4, "time_limit": 60, "backoff": ASKED["backoff"]}
    removals = {"remove_on_complete": 100, "remove_on_fail": ASKED["removeOnFail"]}
    assert is_as_asked(submit("demo.echo", {}, priority=8, delay=5, **in_python, **removals))
    echo = handlers.find("demo.echo")
    for options in (
        {"priority": 8, "countdown": 5, **in_python, **removals},
        ASKED,
        {"headers": ASKED},  # as schedules do
        {"headers": {**ASKED, "maxAttempts": 4}, "time_limit": 60.0},
    ):
        assert is_as_asked(Task.objects.get(pk=echo.apply_async(kwargs={}, **options).id)), options


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"countdown": 1, "headers": {"delay": 2000}}, "delay"),
        ({"attempts": 3, "maxAttempts": 4}, "maxAttempts"),
        ({"time_limit": 1, "timeout": 2000}, "timeout"),
        ({"headers": {"attempts": 3, "unknown": 1}}, "headers"),
        ({"attempts": "3"}, "maxAttempts"),
        ({"timeout": "soon"}, "timeLimit"),
        ({"backoff": "sometimes"}, "backoff"),
    ],
)
def test_celerys_door_names_what_it_cannot_take(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        handlers.find("demo.echo").apply_async(kwargs={}, **options)
    assert [fault.pointer for fault in refused.value.faults] == [name]


@pytest.mark.parametrize(
    ("option", "pointer", "says"),
    [
        ({"attempts": 3, "maxAttempts": 4}, "/attempts", "contradicts maxAttempts"),
        ({"attempts": 1001}, "/maxAttempts", "1 to 1000"),
        ({"timeout": 86_400_001}, "/timeout", "at most 86400 seconds"),
        ({"backoff": {"type": "linear", "delay": 1}}, "/backoff", "exponential or fixed"),
        ({"backoff": {"type": "fixed", "delay": 10**12}}, "/backoff", "0 to 86400000"),
        ({"removeOnComplete": "all"}, "/removeOnComplete", "true, false"),
        ({"removeOnComplete": {"age": 8 * 86400}}, "/removeOnComplete", "0 to 604800 seconds"),
        ({"removeOnFail": -1}, "/removeOnFail", "how many to keep"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_what_is_allowed(
    producer: Caller, problem: Problem, option: dict[str, Any], pointer: str, says: str
) -> None:
    document = problem(producer.post("/tasks", {"type": "demo.echo", **option}), 422)
    [error] = document["errors"]
    assert error["pointer"] == pointer
    assert says in error["detail"]


def test_two_names_that_say_the_same_are_no_contradiction(producer: Caller) -> None:
    document = json.loads(
        producer.post("/tasks", {"type": "demo.echo", "attempts": 4, "maxAttempts": 4}).content
    )
    assert document["maxAttempts"] == 4


def test_a_pruned_task_is_gone_and_not_unknown(
    producer: Caller, operator: Caller, problem: Problem, end_as: Callable[..., Task]
) -> None:
    body = {"type": "demo.echo", "id": "mine", "removeOnComplete": True}
    task = Task.objects.get(pk=json.loads(producer.post("/tasks", body).content)["id"])
    end_as(task, "succeeded")
    Task.objects.filter(pk=task.pk).update(finished_at=F("finished_at") - timedelta(minutes=1))
    prune()
    for address in ("/tasks/mine", f"/tasks/{task.pk}"):
        document = problem(operator.get(address), 410)
        assert (document["code"], document["state"]) == ("pruned", "succeeded")
        assert document["finishedAt"]
        assert "kept" in document["rule"]
    problem(operator.post("/tasks/mine/cancel"), 410)
    problem(operator.get("/tasks/never"), 404)


def test_types_say_their_rules(viewer: Caller) -> None:
    types = {each["name"]: each for each in json.loads(viewer.get("/types").content)}
    told = types["testing.verdict"]
    assert [(rule["error"], rule["kind"], rule["attempts"]) for rule in told["retry"]["on"]] == [
        ("builtins.LookupError", "fixed", None),
        ("builtins.ValueError", "fixed", 1),
    ]
    assert told["keep"] == {"succeeded": {"count": 50}, "dead": {"age": 864000.0}}
