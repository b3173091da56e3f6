"""Workflows and batches over HTTP."""

import uuid

import pytest

from capataz.models import Task, Workflow

pytestmark = pytest.mark.django_db


def test_a_workflow_is_submitted_whole_and_its_nodes_wait(producer, viewer):
    nodes = [
        {"key": "a", "type": "demo.echo", "data": {"message": "a"}},
        {"key": "b", "type": "demo.echo", "after": ["a"], "feed": True, "priority": 0, "removeOnComplete": 0},
        {"key": "c", "type": "demo.echo", "after": {"a": "run", "b": "ignore"}},
    ]
    answer = producer.post("/workflows", {"name": "etl", "nodes": nodes, "onSuccess": {"type": "demo.echo"}})
    assert answer.status_code == 202, answer.content
    document = answer.json()
    assert (document["state"], document["total"], document["open"], document["name"]) == (
        "running",
        3,
        3,
        "etl",
    )
    page = viewer.get(f"/workflows/{document['id']}/tasks").json()
    assert sorted(item["state"] for item in page["items"]) == ["blocked", "blocked", "queued"]
    assert {item["status"] for item in page["items"]} == {"pending"}
    assert viewer.get(f"/workflows/{document['id']}").json() == document
    told = Task.objects.get(node="b")
    assert (told.priority, told.keep) == (0, {"succeeded": {"count": 0}})


@pytest.mark.parametrize(
    ("nodes", "pointer", "code"),
    [
        ([{"key": "a", "after": ["a"]}], "nodes", "cycle"),
        ([{"key": "a", "after": ["x"]}], "nodes/a/after", "unknown_node"),
        ([{"key": "a"}, {"key": "a"}], "nodes/a", "taken"),
        ([{"key": "a"}, {"key": "b", "after": {"a": "panic"}}], "nodes/b/after", "unknown_policy"),
        ([{"key": "a", "data": {"nonsense": 1}}], "nodes/a/data/nonsense", "extra_forbidden"),
        ([{"key": "a", "id": "mine"}], "nodes/a/key", "unknown_option"),
    ],
)
def test_what_is_wrong_with_a_workflow_is_named(producer, problem, nodes, pointer, code):
    given = {"nodes": [{"type": "demo.echo", **node} for node in nodes]}
    [error] = problem(producer.post("/workflows", given), 422)["errors"]
    assert (error["pointer"], error["code"]) == (f"/{pointer}", code)
    assert not Workflow.objects.exists()


def test_a_batch_can_be_added_to_until_it_is_closed(producer, problem):
    task = {"type": "demo.echo"}
    batch = producer.post("/batches", {"tasks": [task, task], "open": True}).json()
    assert (batch["state"], batch["total"]) == ("open", 2)
    more = producer.post(f"/batches/{batch['id']}/tasks", {"tasks": [task]})
    assert more.json()["count"] == 1
    assert producer.post(f"/batches/{batch['id']}/close").json()["state"] == "running"
    problem(producer.post(f"/batches/{batch['id']}/tasks", {"tasks": [task]}), 409)
    problem(producer.post(f"/batches/{batch['id']}/tasks", {"tasks": [{**task, "id": "x"}]}), 422)


def test_operators_cancel_and_retry_workflows_and_nobody_else_does(producer, operator, problem):
    given = {"nodes": [{"key": "a", "type": "demo.echo"}, {"key": "b", "type": "demo.echo", "after": ["a"]}]}
    name = f"/workflows/{producer.post('/workflows', given).json()['id']}"
    problem(producer.post(f"{name}/cancel"), 403)
    assert operator.post(f"{name}/cancel", {"reason": "enough"}).status_code == 200
    assert set(Task.objects.values_list("state", flat=True)) == {"cancelled"}
    problem(producer.post(f"{name}/retry"), 403)
    assert operator.post(f"{name}/retry").status_code == 200
    assert dict(Task.objects.values_list("node", "state")) == {"a": "queued", "b": "blocked"}
    problem(operator.post(f"{name}/retry"), 409)
    problem(operator.post(f"/workflows/{uuid.uuid4()}/cancel"), 404)


def test_a_type_that_asks_for_a_higher_role_asks_for_it_here_too(producer, problem):
    forbidden = {"type": "bulk_action", "data": {}}
    problem(producer.post("/workflows", {"nodes": [{"key": "a", **forbidden}]}), 403)
    problem(producer.post("/batches", {"tasks": [forbidden]}), 403)
    problem(producer.post("/batches", {"onSuccess": forbidden}), 403)
    batch = producer.post("/batches", {"open": True}).json()
    problem(producer.post(f"/batches/{batch['id']}/tasks", {"tasks": [forbidden]}), 403)
