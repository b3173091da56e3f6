"""A handler's Celery task: sending it inserts a row, and its messages go to the station."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from celery.app.task import Context, Task
from celery.result import EagerResult

from capataz.handlers import Handler, RunningTask
from capataz.lifecycle import submission


class HandlerTask(Task):
    """The face that a handler shows to Celery. Its messages never pass through Celery's own tracer."""

    abstract = True
    Strategy = "capataz.worker.strategy:pointer_strategy"
    handler: Handler[Any]
    acks_late = True
    ignore_result: bool | None = True
    typing: bool | None = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run inline for ``apply``. Raises TypeError for everybody else.

        ``celery.map`` calls tasks like this, at the word of any message: it would run beside its row.
        """
        if self.request.called_directly:
            raise TypeError(f"{self.name} is a handler: submit it, or call its function")
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the handler inline, as ``task_always_eager`` asks."""
        task = RunningTask(id=uuid.uuid4(), type=self.name, attempt=1, starts=1)
        return self.handler(task, self.handler.load(self.handler.parse(self.handler.from_call(args, kwargs))))

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Submit a task; its row exists when the caller's transaction commits.

        Raises InvalidSubmission when the payload or an option is not acceptable.
        """
        if self.app.conf.task_always_eager:
            value = self.run(*(args or ()), **(kwargs or {}))
            return EagerResult(str(uuid.uuid4()), value, "SUCCESS", name=self.name)
        task = submission.from_celery(self.handler, args, kwargs, options)
        return self.AsyncResult(str(task.id))

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task with this payload."""
        return self.apply_async(args, kwargs)

    def with_declared(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call, with those that the task itself declares."""
        return dict(options)

    def context_of(self, running: RunningTask, payload: str | bytes) -> Context:
        """Celery's ``request`` for an attempt. The payload is none of its business."""
        return Context(
            id=str(running.id),
            task=self.name,
            retries=running.attempt - 1,
            called_directly=False,
            args=(),
            kwargs={},
        )


def make_task(handler: Handler[Any]) -> HandlerTask:
    """The Celery task of this handler."""
    attributes = {"name": handler.name, "handler": handler, "__module__": handler.function.__module__}
    task: HandlerTask = type("HandlerTask", (HandlerTask,), attributes)()
    return task
