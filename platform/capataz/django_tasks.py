"""A backend for Django's Tasks: ``django.tasks`` of Django 6, or the package django-tasks before it.

Every enqueued task is a row of the type ``django.task`` that names its function. Any module may define it:
whoever runs it imports it by its path.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from celery.exceptions import TaskRevokedError
from django.conf import settings
from django.utils.module_loading import import_string
from pydantic import BaseModel, ConfigDict

from capataz import handlers, policy
from capataz.errors import Discard, InvalidSubmission
from capataz.handlers import RunningTask, handler
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Outcome
from capataz.models import Task as Row
from capataz.states import HELD, State
from capataz.worker import coroutines
from capataz.worker.results import TaskFailed

_PACKAGE = "django.tasks" if find_spec("django.tasks") else "django_tasks"
_base: Any = import_module(f"{_PACKAGE}.base")
_exceptions: Any = import_module(f"{_PACKAGE}.exceptions")
_signals: Any = import_module(f"{_PACKAGE}.signals")
BaseTaskBackend: Any = import_module(f"{_PACKAGE}.backends.base").BaseTaskBackend
TaskResultStatus: Any = _base.TaskResultStatus

TYPE = "django.task"
# Seconds, unless the backend's option TIME_LIMIT says another.
TIME_LIMIT = 3600.0

_InvalidTask = getattr(_exceptions, "InvalidTask", None) or _exceptions.InvalidTaskError
# The line of a traceback that names the exception: the first that is not indented, after its frames.
_RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?=:|$)", re.MULTILINE)
_STATUS = {
    State.RUNNING: TaskResultStatus.RUNNING,
    State.SUCCEEDED: TaskResultStatus.SUCCESSFUL,
    State.DEAD: TaskResultStatus.FAILED,
    State.CANCELLED: TaskResultStatus.FAILED,
    State.EXPIRED: TaskResultStatus.FAILED,
}


class DjangoCall(BaseModel):
    """The payload: a task of Django's by the path of its function, and what it is called with."""

    model_config = ConfigDict(extra="forbid")

    function: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    backend: str = "default"
    priority: int = 0
    run_after: datetime | None = None


class CapatazBackend(BaseTaskBackend):
    """``TASKS = {"default": {"BACKEND": "capataz.django_tasks.CapatazBackend", "QUEUES": [...]}}``.

    ``OPTIONS`` may have ``ATTEMPTS``, 1 unless said otherwise, and ``TIME_LIMIT``, in seconds.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Make the row; it exists when the caller's transaction commits.

        Raises TypeError for arguments that are not JSON, and InvalidTask for what cannot be accepted.
        """
        self.validate_task(task)
        empty = {"enqueued_at": None, "started_at": None, "finished_at": None, "last_attempted_at": None}
        about = {"task": task, "status": TaskResultStatus.READY, "backend": self.alias, **empty}
        given = _base.TaskResult(id="", args=args, kwargs=kwargs, errors=[], worker_ids=[], **about)
        try:
            row = submit(
                TYPE,
                {
                    "function": task.module_path,
                    "args": given.args,
                    "kwargs": given.kwargs,
                    "backend": self.alias,
                    "priority": task.priority,
                    "run_after": task.run_after,
                },
                priority=own_priority(task.priority),
                queue=task.queue_name,
                run_at=task.run_after,
                max_attempts=self.options.get("ATTEMPTS", 1),
                time_limit=self.options.get("TIME_LIMIT", TIME_LIMIT),
            )
        except InvalidSubmission as error:
            raise _InvalidTask(str(error)) from None
        result = _result_of(row, task)
        _signals.task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """The result of this id, as its row is now. Raises TaskResultDoesNotExist."""
        try:
            row = Row.objects.get(type=TYPE, pk=uuid.UUID(str(result_id)))
        except (ValueError, Row.DoesNotExist):
            raise _exceptions.TaskResultDoesNotExist(result_id) from None
        return _result_of(row, _task_of(row))


@handler(TYPE, payload=DjangoCall, retry=policy.exponential(attempts=1), time_limit=TIME_LIMIT)
def run(running: RunningTask, call: DjangoCall) -> Any:
    """Run a task of Django's Tasks framework."""
    row = Row.objects.get(pk=running.id)
    task = _task_of(row)
    result = _result_of(row, task, runs=True)
    backend = type(task.get_backend())
    _signals.task_started.send(backend, task_result=result)
    context = [_base.TaskContext(task_result=result)] if task.takes_context else []
    try:
        value = _base.normalize_json(coroutines.finished(task.func(*context, *call.args, **call.kwargs)))
    except Exception as error:
        if running.attempt >= row.max_attempts:
            result.errors.append(_error(type(error).__module__, type(error).__qualname__, str(error)))
            _end(backend, result, TaskResultStatus.FAILED)
        raise
    object.__setattr__(result, "_return_value", value)
    _end(backend, result, TaskResultStatus.SUCCESSFUL)
    return value


def name_queues() -> None:
    """Make the queues of these backends known: workers take from them."""
    for params in getattr(settings, "TASKS", {}).values():
        if params.get("BACKEND", "").startswith(f"{__name__}."):
            for queue in params.get("QUEUES", ["default"]):
                handlers.name_queue(queue)


def own_priority(priority: int) -> int:
    """Django's -100 to 100 as 0 to 10: never less urgent for a higher one."""
    ours: int = (
        (priority - _base.TASK_MIN_PRIORITY) * 10 // (_base.TASK_MAX_PRIORITY - _base.TASK_MIN_PRIORITY)
    )
    return ours


def _task_of(row: Row) -> Any:
    call = DjangoCall.model_validate(row.payload)
    try:
        task = import_string(call.function)
    except ImportError as error:
        raise Discard(f"the task {call.function} cannot be imported: {error}") from None
    if not isinstance(task, _base.Task):
        raise Discard(f"{call.function} is no task of Django's")
    return task.using(
        priority=call.priority, queue_name=row.queue, run_after=call.run_after, backend=call.backend
    )


def _end(backend: type, result: Any, status: Any) -> None:
    object.__setattr__(result, "status", status)
    _signals.task_finished.send(backend, task_result=result)


def _result_of(row: Row, task: Any, *, runs: bool = False) -> Any:
    attempts = list(Attempt.objects.filter(task_id=row.pk).order_by("started_at"))
    workers = [str(each.worker_id) for each in attempts]
    if runs or row.state == State.RUNNING:
        workers.append(str(row.worker_id))
    times = [each.started_at for each in attempts] + ([row.started_at] if row.state in HELD else [])
    started = [each for each in times if each is not None]
    result = _base.TaskResult(
        task=task,
        id=str(row.pk),
        status=TaskResultStatus.RUNNING if runs else _STATUS.get(State(row.state), TaskResultStatus.READY),
        enqueued_at=row.created_at,
        started_at=min(started, default=None),
        finished_at=row.finished_at,
        last_attempted_at=max(started, default=None),
        args=row.payload.get("args", []),
        kwargs=row.payload.get("kwargs", {}),
        backend=task.backend,
        errors=list(_errors(row, attempts)),
        worker_ids=workers,
    )
    object.__setattr__(result, "_return_value", row.result)
    return result


def _errors(row: Row, attempts: list[Attempt]) -> Iterator[Any]:
    for each in attempts:
        if each.outcome == Outcome.FAILED and each.traceback:
            yield _base.TaskError(exception_class_path=_raised_in(each.traceback), traceback=each.traceback)
        elif each.outcome in (Outcome.FAILED, Outcome.LOST):
            yield _error(TaskFailed.__module__, TaskFailed.__qualname__, each.error or each.outcome)
    if row.state in (State.CANCELLED, State.EXPIRED):
        yield _error(TaskRevokedError.__module__, TaskRevokedError.__qualname__, row.error or row.state)


def _error(module: str, name: str, text: str) -> Any:
    return _base.TaskError(exception_class_path=f"{module}.{name}", traceback=text)


def _raised_in(traceback: str) -> str:
    """The path of the exception that this traceback ends with."""
    found = _RAISED.search(traceback.rpartition("Traceback (most recent call last):\n")[2])
    path = found[1] if found else "Exception"
    return path if "." in path else f"builtins.{path}"
