"""Tasks: submit, look at, cancel, retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Body, Query, Router
from ninja.responses import codes_4xx

from capataz import handlers
from capataz.api import pages, task_document
from capataz.api.auth import Allows, Caller
from capataz.api.body import BULK_URL_NAME
from capataz.api.problems import Problem
from capataz.api.schemas import (
    BulkIn,
    BulkOut,
    LogFilter,
    LogPage,
    NothingIn,
    ProblemOut,
    ReasonIn,
    ReplayIn,
    TaskFilter,
    TaskIn,
    TaskOut,
    TaskPage,
)
from capataz.api.wire import answer, moment
from capataz.errors import Fault, IllegalMove, InvalidSubmission
from capataz.lifecycle import cancellation, discarding, notes, pruned
from capataz.lifecycle import replay as replaying
from capataz.lifecycle import retry as retrying
from capataz.lifecycle.submission import submit_many
from capataz.models import LogLine, Role, Task

router = Router(tags=["tasks"])

LONGEST_ID = 255
ONE = {200: TaskOut, codes_4xx: ProblemOut}


class CallerRequest(HttpRequest):
    """A request whose caller is known."""

    auth: Caller


@router.post("/tasks", auth=Allows(Role.PRODUCER), response={202: TaskOut, codes_4xx: ProblemOut})
def submit(request: CallerRequest, task: TaskIn) -> HttpResponse:
    """Accept one task. Its data is checked against the schema of its type."""
    may_submit(request.auth, task.type)
    [task_id] = submit_many([task.submission(request.auth.name)])
    document = task_document.of_one(Task.objects.get(pk=task_id))
    return answer(document, 202, {"Location": f"{request.path}/{task_id}"})


@router.post(
    "/tasks/bulk",
    auth=Allows(Role.PRODUCER),
    response={202: BulkOut, codes_4xx: ProblemOut},
    url_name=BULK_URL_NAME,
)
def submit_bulk(request: CallerRequest, bulk: BulkIn) -> HttpResponse:
    """Accept many tasks at once: all of them, or none and every fault."""
    by = request.auth.name
    for task_type in {task.type for task in bulk.tasks}:
        may_submit(request.auth, task_type)
    try:
        ids = submit_many([task.submission(by) for task in bulk.tasks])
    except InvalidSubmission as error:
        raise _below_tasks(error, len(bulk.tasks)) from None
    return answer({"ids": [str(each) for each in ids], "count": len(ids)}, 202)


@router.get("/tasks", auth=Allows(Role.VIEWER), response={200: TaskPage, codes_4xx: ProblemOut})
def list_tasks(request: CallerRequest, wanted: Query[TaskFilter]) -> HttpResponse:
    """Tasks, newest first. Items carry no attempts; the task's own address shows them."""
    tasks = Task.objects.all()
    if wanted.status:
        try:
            tasks = tasks.with_status(*wanted.status)
        except ValueError as error:
            raise InvalidSubmission([Fault("query/status", "unknown_status", str(error))]) from None
    if wanted.type:
        tasks = tasks.filter(type=wanted.type)
    if wanted.queue:
        tasks = tasks.filter(queue=wanted.queue)
    page = pages.page_of(tasks, limit=wanted.limit, after=wanted.cursor)
    following = str(page.next_cursor) if page.next_cursor else None
    document = {"items": task_document.of_many(page.tasks), "nextCursor": following}
    return answer(document, headers=page.links(request))


# The actions come first: an id may contain a slash, and would swallow them.
@router.post("/tasks/{path:task_id}/cancel", auth=Allows(Role.OPERATOR), response=ONE)
def cancel(
    request: CallerRequest, task_id: str, why: Annotated[ReasonIn | None, Body()] = None
) -> HttpResponse:
    """Stop a task for good. A running one ends as soon as its handler lets go or is killed."""
    reason = why.reason if why else ""
    return _act(task_id, lambda task: cancellation.cancel(task, reason=reason, by=request.auth.name))


@router.post("/tasks/{path:task_id}/retry", auth=Allows(Role.OPERATOR), response=ONE)
def retry(
    request: CallerRequest, task_id: str, nothing: Annotated[NothingIn | None, Body()] = None
) -> HttpResponse:
    """Queue a task again that is dead, cancelled or expired, with all its attempts ahead of it."""
    return _act(task_id, lambda task: retrying.retry(task, by=request.auth.name))


@router.post(
    "/tasks/{path:task_id}/replay", auth=Allows(Role.OPERATOR), response={202: TaskOut, codes_4xx: ProblemOut}
)
def replay(
    request: CallerRequest, task_id: str, edited: Annotated[ReplayIn | None, Body()] = None
) -> HttpResponse:
    """Do an ended task again as a new one, linked to it, with its payload or an edited one."""
    task = _find(task_id)
    may_submit(request.auth, task.type)
    data = edited.data if edited and "data" in edited.model_fields_set else replaying.AS_IT_WAS
    new = replaying.replay(task, data=data, key=edited.id if edited else None, by=request.auth.name)
    return answer(task_document.of_one(new), 202, {"Location": _address(request, new)})


@router.post("/tasks/{path:task_id}/discard", auth=Allows(Role.OPERATOR), response=ONE)
def discard(
    request: CallerRequest, task_id: str, why: Annotated[ReasonIn | None, Body()] = None
) -> HttpResponse:
    """Take a dead task out of the dead letters: it is cancelled, and may still be retried."""
    reason = why.reason if why else ""
    return _act(task_id, lambda task: discarding.discard(task, reason=reason, by=request.auth.name))


@router.get(
    "/tasks/{path:task_id}/logs", auth=Allows(Role.VIEWER), response={200: LogPage, codes_4xx: ProblemOut}
)
def read_logs(request: CallerRequest, task_id: str, wanted: Query[LogFilter]) -> HttpResponse:
    """What its handler has logged, oldest first, of all attempts."""
    lines = LogLine.objects.filter(task_id=_find(task_id).pk, pk__gt=wanted.cursor).order_by("pk")
    return answer(task_document.of_log(list(lines[: wanted.limit])))


@router.get("/tasks/{path:task_id}", auth=Allows(Role.VIEWER), response=ONE)
def read(request: CallerRequest, task_id: str, reveal: bool = False) -> HttpResponse:
    """One task, by its id or by the id that the client gave it.

    Secrets in its data and result are masked. `reveal=true` shows them to an admin, and leaves an event.
    """
    if not reveal:
        return answer(task_document.of_one(_find(task_id)))
    if not request.auth.role.includes(Role.ADMIN):
        detail = f"Revealing secrets needs the role admin; you have {request.auth.role.value}."
        raise Problem(403, "forbidden", detail)
    with transaction.atomic():
        task = _find(task_id)
        notes.tell("task.revealed", task=task, by=request.auth.name)
        return answer(task_document.of_one(task, revealed=True))


def may_submit(caller: Caller, task_type: str) -> None:
    """Raises Problem 403 if this type needs a higher role. One that does not exist is found later."""
    needed = Role(handlers.find(task_type).role) if handlers.is_registered(task_type) else Role.PRODUCER
    if not caller.role.includes(needed):
        detail = f"Submitting {task_type} needs the role {needed.value}; you have {caller.role.value}."
        raise Problem(403, "forbidden", detail)


def _address(request: CallerRequest, task: Task) -> str:
    """Where a task that was made below another one's address is found."""
    return f"{request.path.partition('/tasks/')[0]}/tasks/{task.pk}"


def _find(task_id: str) -> Task:
    """The task. Raises Problem 410 if it was deleted by retention, and 404 if there is none."""
    possible = len(task_id) <= LONGEST_ID and task_id.isprintable()
    task = Task.objects.called(task_id).first() if possible else None
    if task is None:
        raise (_gone(task_id) if possible else None) or Problem(
            404, "unknown_task", "There is no task of this id."
        )
    return task


def _gone(task_id: str) -> Problem | None:
    """410 for a task that retention has deleted; None if none is known."""
    found = pruned.trace(task_id)
    if found is None:
        return None
    return Problem(
        410,
        "pruned",
        f"This task has ended and was deleted: {found.rule}.",
        state=found.state and found.state.value,
        finishedAt=moment(found.finished_at),
        prunedAt=moment(found.pruned_at),
        rule=found.rule,
    )


def _act(task_id: str, verb: Callable[[Task], Task]) -> HttpResponse:
    task = _find(task_id)
    try:
        task = verb(task)
    except IllegalMove as error:
        raise Problem(409, "illegal_move", str(error), state=task.state) from None
    except Task.DoesNotExist:
        raise Problem(404, "unknown_task", "The task was deleted meanwhile.") from None
    return answer(task_document.of_one(task))


def _below_tasks(error: InvalidSubmission, count: int) -> InvalidSubmission:
    """The same faults, with pointers into the list also where it has one task only."""
    if count > 1:
        return error
    return InvalidSubmission(
        [Fault(f"tasks/0/{each.pointer}", each.code, each.detail) for each in error.faults]
    )
