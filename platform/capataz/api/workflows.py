"""Workflows and batches: submit, look at, add to, cancel, retry."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja import Body, Query, Router
from ninja.responses import codes_4xx

from capataz.api import pages, task_document
from capataz.api.auth import Allows, Caller
from capataz.api.body import BULK_URL_NAME
from capataz.api.problems import Problem
from capataz.api.schemas import (
    BatchIn,
    BulkIn,
    BulkOut,
    NothingIn,
    ProblemOut,
    ReasonIn,
    TaskIn,
    TaskPage,
    WorkflowFilter,
    WorkflowIn,
    WorkflowOut,
)
from capataz.api.tasks import may_submit
from capataz.api.wire import answer, moment
from capataz.lifecycle import submission, workflows
from capataz.lifecycle.workflows import Node, Step
from capataz.models import Role, Task, Workflow
from capataz.models.task import new_task_id

router = Router(tags=["workflows"])

ONE = {200: WorkflowOut, codes_4xx: ProblemOut}
ACCEPTED = {202: WorkflowOut, codes_4xx: ProblemOut}


class CallerRequest(HttpRequest):
    """A request whose caller is known."""

    auth: Caller


@router.post("/workflows", auth=Allows(Role.PRODUCER), response=ACCEPTED, url_name=f"{BULK_URL_NAME}-nodes")
def submit(request: CallerRequest, given: WorkflowIn) -> HttpResponse:
    """Accept a workflow: all of its nodes or none. A node starts when those that it names in `after`
    ended."""
    flow = _flow(given, request.auth)
    for node in given.nodes:
        flow.add(
            node.type, node.submission("").data, name=node.key, after=node.after, on_failure=node.on_failure,
            feed=node.feed, **_options(node, request.auth),
        )  # fmt: skip
    return _accepted(flow.submit())


@router.post("/batches", auth=Allows(Role.PRODUCER), response=ACCEPTED, url_name=f"{BULK_URL_NAME}-batch")
def submit_batch(request: CallerRequest, given: BatchIn) -> HttpResponse:
    """Accept a batch: tasks that belong together. One that is `open` can be added to until it is closed."""
    flow = _flow(given, request.auth, open=given.open)
    for task in given.tasks:
        flow.add(task.type, task.submission("").data, **_options(task, request.auth))
    return _accepted(flow.submit())


@router.post(
    "/batches/{uuid:batch_id}/tasks",
    auth=Allows(Role.PRODUCER),
    response={202: BulkOut, codes_4xx: ProblemOut},
    url_name=f"{BULK_URL_NAME}-to-batch",
)
def add(request: CallerRequest, batch_id: uuid.UUID, bulk: BulkIn) -> HttpResponse:
    """Add tasks to an open batch: all of them or none."""
    nodes = [
        Node(
            str(node_id),
            task.type,
            task.submission("").data,
            options=_options(task, request.auth),
            id=node_id,
        )
        for task in bulk.tasks
        for node_id in [new_task_id()]
    ]
    ids = workflows.add_many(_find(batch_id), nodes, by=request.auth.name)
    return answer({"ids": [str(each) for each in ids], "count": len(ids)}, 202)


@router.post("/batches/{uuid:batch_id}/close", auth=Allows(Role.PRODUCER), response=ONE)
def close(
    request: CallerRequest, batch_id: uuid.UUID, nothing: Annotated[NothingIn | None, Body()] = None
) -> HttpResponse:
    """Let nobody add to a batch any more: it is finished when its tasks have ended."""
    return answer(document(workflows.close(_find(batch_id))))


@router.get("/workflows/{uuid:workflow_id}", auth=Allows(Role.VIEWER), response=ONE)
def read(request: CallerRequest, workflow_id: uuid.UUID) -> HttpResponse:
    """A workflow or a batch, with its counts."""
    return answer(document(_find(workflow_id)))


@router.get(
    "/workflows/{uuid:workflow_id}/tasks",
    auth=Allows(Role.VIEWER),
    response={200: TaskPage, codes_4xx: ProblemOut},
)
def nodes(request: CallerRequest, workflow_id: uuid.UUID, wanted: Query[WorkflowFilter]) -> HttpResponse:
    """Its tasks, newest first."""
    tasks = Task.objects.filter(workflow_id=_find(workflow_id).pk)
    page = pages.page_of(tasks, limit=wanted.limit, after=wanted.cursor)
    following = str(page.next_cursor) if page.next_cursor else None
    body = {"items": task_document.of_many(page.tasks), "nextCursor": following}
    return answer(body, headers=page.links(request))


@router.post("/workflows/{uuid:workflow_id}/cancel", auth=Allows(Role.OPERATOR), response=ONE)
def cancel(
    request: CallerRequest, workflow_id: uuid.UUID, why: Annotated[ReasonIn | None, Body()] = None
) -> HttpResponse:
    """Cancel every task of it that has not ended."""
    reason = why.reason if why else ""
    return answer(document(workflows.cancel(_find(workflow_id), reason=reason, by=request.auth.name)))


@router.post("/workflows/{uuid:workflow_id}/retry", auth=Allows(Role.OPERATOR), response=ONE)
def retry(
    request: CallerRequest, workflow_id: uuid.UUID, nothing: Annotated[NothingIn | None, Body()] = None
) -> HttpResponse:
    """Queue again what of it failed, and what was cancelled for that; what has succeeded is left alone."""
    workflow = _find(workflow_id)
    workflows.retry(workflow, by=request.auth.name)
    return answer(document(workflow))


def document(workflow: Workflow) -> dict[str, Any]:
    """A workflow as clients see it: ``schemas.WorkflowOut``."""
    called = {kind: each["id"] for kind, each in workflow.callbacks.items() if kind in workflow.called}
    return {
        "id": str(workflow.pk),
        "name": workflow.name,
        "state": workflow.state,
        "total": workflow.total,
        "succeeded": workflow.succeeded,
        "dead": workflow.dead,
        "cancelled": workflow.cancelled,
        "expired": workflow.expired,
        "open": workflow.total - workflow.ended,
        "callbacks": called,
        "submittedBy": workflow.submitted_by,
        "createdAt": moment(workflow.created_at),
        "closedAt": moment(workflow.closed_at),
        "finishedAt": moment(workflow.finished_at),
    }


def _flow(given: WorkflowIn | BatchIn, caller: Caller, **options: Any) -> workflows.Workflow:
    steps: dict[str, Any] = {
        name: Step(task.type, task.submission("").data, _options(task, caller))
        for name in ("on_success", "on_complete", "on_failure")
        if (task := getattr(given, name)) is not None
    }
    return workflows.Workflow(given.name, submitted_by=caller.name, **steps, **options)


def _options(task: TaskIn, caller: Caller) -> dict[str, Any]:
    """What differs from the handler's own policy. Raises Problem 403 if the caller may not submit this
    type."""
    may_submit(caller, task.type)
    asked = task.submission("")
    named = {name: getattr(asked, name) for name in submission.OPTIONS - {"type", "data", "submitted_by"}}
    return {name: value for name, value in named.items() if value is not None and value is not False}


def _accepted(workflow: Workflow) -> HttpResponse:
    return answer(document(workflow), 202, {"Location": f"/api/v1/workflows/{workflow.pk}"})


def _find(workflow_id: uuid.UUID) -> Workflow:
    workflow = Workflow.objects.filter(pk=workflow_id).first()
    if workflow is None:
        raise Problem(404, "unknown_workflow", "There is no workflow of this id.")
    return workflow
