"""The result backend: django-celery-results for plain tasks, the task's own row for handlers' tasks."""

from __future__ import annotations

from typing import Any

from celery import current_app
from celery import states as celery_states
from celery.exceptions import TaskRevokedError
from django_celery_results.backends.database import DatabaseBackend

from capataz import handlers, sensitive
from capataz.lifecycle import task_results
from capataz.models import Attempt, Dependency, Task
from capataz.states import HELD, State

_CELERY_STATE = {
    State.SCHEDULED: celery_states.PENDING,
    State.BLOCKED: celery_states.PENDING,
    State.QUEUED: celery_states.PENDING,
    State.CLAIMED: celery_states.RECEIVED,
    State.RUNNING: celery_states.STARTED,
    State.RETRYING: celery_states.RETRY,
    State.SUCCEEDED: celery_states.SUCCESS,
    State.DEAD: celery_states.FAILURE,
    State.CANCELLED: celery_states.REVOKED,
    State.EXPIRED: celery_states.REVOKED,
}


class TaskFailed(Exception):
    """What ``AsyncResult.get()`` raises for a handler's task that failed; says why it did."""


class ResultBackend(DatabaseBackend):
    """Answers ``AsyncResult`` for both kinds of task."""

    def _get_task_meta_for(self, task_id: str) -> Any:
        task = _own_task(task_id)
        return super()._get_task_meta_for(task_id) if task is None else _meta(task)

    def cleanup(self) -> None:
        """Delete the results of plain tasks that are past their time; a handler's goes with its task."""
        if self.expires:
            names = [handler.name for handler in handlers.registered()]
            expired = self.TaskModel.objects.get_all_expired(self.expires)
            expired.exclude(task_name__in=names).delete()
            self.GroupModel.objects.delete_expired(self.expires)


def _own_task(task_id: str) -> Task | None:
    return Task.objects.called(str(task_id)).first()


def _meta(task: Task) -> dict[str, Any]:
    state = _CELERY_STATE[State(task.state)]
    result: Any = sensitive.opened(task.result, sensitive.RESULT, task.pk)
    if state in celery_states.EXCEPTION_STATES:
        kind = TaskRevokedError if state == celery_states.REVOKED else TaskFailed
        result = kind(task.error or task.state)
    if task.state in HELD and (told := task_results.told(task)):
        state, result = told
    return {
        "task_id": str(task.id),
        "status": state,
        "result": result,
        "traceback": _traceback(task) if state == celery_states.FAILURE else None,
        "children": _children(task),
        "date_done": task.finished_at,
        "name": task.type,
        "worker": task.worker_id,
        "retries": max(0, task.attempts - 1),
        "queue": task.queue,
    }


def _children(task: Task) -> list[Any]:
    """The tasks that wait for this one."""
    if task.workflow_id is None:
        return []
    waiting = Dependency.objects.filter(parent_id=task.pk).order_by("id")
    return [current_app.AsyncResult(str(child)) for child in waiting.values_list("child_id", flat=True)]


def _traceback(task: Task) -> str | None:
    attempts = Attempt.objects.filter(task_id=task.pk).order_by("-finished_at")
    return attempts.values_list("traceback", flat=True).first()
