"""Dead letters and bulk actions over the API."""

import dataclasses

import pytest
from django.db.models.functions import Now

from capataz import handlers
from capataz.lifecycle.submission import submit
from capataz.models import Event, Task


@pytest.fixture
def operator(client_as):
    return client_as("operator")


@pytest.fixture
def dead(db):
    tasks = [submit("demo.echo", {"message": n}) for n in range(3)]
    Task.objects.update(
        state="dead", cause="ValueError in f (a/b.py)", error="ValueError: x", finished_at=Now()
    )
    return tasks


def test_groups_are_listed(operator, dead):
    [group] = operator.get("/dead-letters").json()
    assert (group["type"], group["cause"], group["count"]) == ("demo.echo", "ValueError in f (a/b.py)", 3)
    assert group["error"] == "ValueError: x" and len(group["examples"]) == 3


def test_a_preview_does_nothing(operator, dead):
    answered = operator.post("/bulk", {"action": "retry", "filter": {"status": ["dead"]}, "preview": True})
    assert answered.status_code == 200 and answered.json()["matches"] == 3 and answered.json()["task"] is None
    assert Task.objects.filter(state="dead").count() == 3 == Task.objects.count()


def test_a_bulk_action_is_a_task_with_an_audit_line(operator, dead):
    wanted = {"action": "discard", "filter": {"cause": "ValueError in f (a/b.py)"}, "perSecond": 50}
    answered = operator.post("/bulk", wanted)
    assert answered.status_code == 202 and answered["Location"] == f"/api/v1/tasks/{answered.json()['task']}"
    task = Task.objects.get(pk=answered.json()["task"])
    assert task.payload == {
        "action": "discard",
        "filter": wanted["filter"],
        "perSecond": 50,
        "by": "token test operator",
    }
    assert Event.objects.get(kind="task.bulkAction").detail["by"] == "token test operator"


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({"action": "retry", "filter": {}}, "/"),
        ({"action": "explode", "filter": {"type": "demo.echo"}}, "/action"),
        ({"action": "retry", "filter": {"status": ["nope"]}}, "/filter/status/0"),
        ({"action": "retry", "filter": {"endedAfter": "2026-01-01T00:00:00"}}, "/filter/endedAfter"),
        ({"action": "retry", "filter": {"type": "demo.echo"}, "perSecond": 0}, "/perSecond"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(operator, wanted, pointer):
    answered = operator.post("/bulk", wanted)
    assert answered.status_code == 422
    assert pointer in [error["pointer"] for error in answered.json()["errors"]]


def test_a_producer_cannot_submit_what_needs_an_operator(client_as):
    data = {"action": "cancel", "filter": {"type": "demo.echo"}}
    for path, body in [
        ("/tasks", {"type": "bulk_action", "data": data}),
        ("/tasks/bulk", {"tasks": [{"type": "bulk_action", "data": data}]}),
    ]:
        assert client_as("producer").post(path, body).status_code == 403
        assert client_as("operator").post(path, body).status_code == 202


def test_whoever_may_not_submit_a_type_does_not_replay_it_in_bulk(operator, dead, monkeypatch, problem):
    for_admins = dataclasses.replace(handlers.find("demo.echo"), role="admin")
    monkeypatch.setitem(handlers._registry, "demo.echo", for_admins)
    problem(operator.post("/bulk", {"action": "replay", "filter": {"status": ["dead"]}}), 403)
    assert operator.post("/bulk", {"action": "retry", "filter": {"status": ["dead"]}}).status_code == 202
    assert Task.objects.filter(type="bulk_action").count() == 1


def test_a_task_is_replayed_with_edits_under_an_id(operator, dead):
    address = f"/tasks/{dead[0].pk}/replay"
    answered = operator.post(address, {"data": {"message": "edited"}, "id": "again"})
    document = answered.json()
    assert answered.status_code == 202 and answered["Location"].endswith(f"/tasks/{document['id']}")
    assert (document["replayOf"], document["data"]) == (str(dead[0].pk), {"message": "edited"})
    again = operator.post(address, {"data": {"message": "edited"}, "id": "again"})
    assert again.json()["id"] == document["id"]
    assert operator.post(f"/tasks/{document['id']}/replay").status_code == 409  # it waits
    assert operator.post(address, {"data": {"no": 1}}).status_code == 422


def test_a_dead_task_is_discarded_once(operator, dead):
    address = f"/tasks/{dead[0].pk}/discard"
    assert operator.post(address, {"reason": "known"}).json()["state"] == "cancelled"
    assert Event.objects.get(kind="task.discarded").detail["because"] == "known"
    assert operator.post(f"/tasks/{submit('demo.echo').pk}/discard").status_code == 409


def test_what_is_left_is_guessed_from_the_progress(operator, db):
    task = submit("demo.echo")
    Task.objects.update(state="running", run=1, worker_id=1, released_at=Now(), started_at=Now(), progress=0)
    assert operator.get(f"/tasks/{task.pk}").json()["etaMs"] is None
    Task.objects.update(progress=1)
    assert operator.get(f"/tasks/{task.pk}").json()["etaMs"] >= 0
