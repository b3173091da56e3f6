"""Durable tasks: functions written for Celery whose tasks are rows, as those of handlers are.

Their payload is ``{"args": [...], "kwargs": {...}}``. What Celery gives a task (``self.request``,
``self.retry()``, ``autoretry_for``, its hooks and signals) works as it did.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from billiard.einfo import ExceptionInfo
from celery import current_task, states
from celery.app.task import Context, Task
from celery.app.trace import _localized
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.serialization import raise_with_context
from celery.utils.time import rate
from django.conf import settings
from kombu.utils import json as tagged
from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer

from capataz import handlers, policy
from capataz.database import database_now
from capataz.errors import ConfigurationError, Discard
from capataz.flow import PERIODS, RATE, Limit
from capataz.handlers import MAX_TIME_LIMIT, RunningTask
from capataz.lifecycle import submission, task_results
from capataz.worker import coroutines
from capataz.worker.handler_task import HandlerTask
from capataz.worker.plain import PlainTask

# Seconds from a soft limit to the hard one, where only the soft one is declared.
AFTER_SOFT = 300.0
# Seconds until what was rejected to be requeued is tried again.
REQUEUED = 1.0


def _decoded(value: Any) -> Any:
    """What Celery's JSON means: times, UUIDs and the like are objects with a tag."""
    if isinstance(value, dict):
        return tagged.object_hook({key: _decoded(each) for key, each in value.items()})
    return [_decoded(each) for each in value] if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    try:
        return _decoded(value)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _encode(value: Any) -> Any:
    return json.loads(tagged.dumps(value))


_tags = AfterValidator(_decode), PlainSerializer(_encode)


class Call(BaseModel):
    """The payload of a durable task: what its function is called with."""

    model_config = ConfigDict(extra="forbid")

    args: Annotated[list[Any], *_tags] = []
    kwargs: Annotated[dict[str, Any], *_tags] = {}


class Request(Context):
    """``self.request`` of a durable task that runs."""

    called_directly = False
    task: DurableTask
    asked_again: Retry | None = None
    told_state: str | None = None
    told_meta: Any = None

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Where the task waited. Read from its row when it is asked for, which is seldom."""
        from capataz.models import Task as Row

        queue, priority = Row.objects.values_list("queue", "priority").get(pk=self.id)
        return {
            "exchange": "",
            "routing_key": queue,
            "priority": priority,
            "redelivered": self.starts > self.retries + 1,
        }


class DurableTask(HandlerTask, DjangoTask):
    """The base of a Celery task whose calls are rows: ``@shared_task(base=DurableTask)``."""

    abstract = True
    ignore_result = None
    typing = None
    soft_time_limit = PlainTask.soft_time_limit
    time_limit = PlainTask.time_limit
    run = Task.run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, as calling any Celery task does."""
        request = self.request_stack.top
        if request is not None and not request.called_directly and not request._protected:
            request._protected = 1
            return self.run(*args, **kwargs)
        if current_task and current_task.name.startswith("celery."):  # a map, at the word of any message
            raise TypeError(f"{self.name} is durable: submit it instead")
        return Task.__call__(self, *args, **kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Submit a task; its row exists when the caller's transaction commits.

        Raises TypeError for arguments that the function does not take, and InvalidSubmission for what
        else is not acceptable.
        """
        if self.app.conf.task_always_eager:
            return Task.apply_async(self, args, kwargs, **options)
        self._check_arguments(*(args or ()), **(kwargs or {}))
        if self._dump_pydantic_arguments is not None:
            args, kwargs = self._dump_pydantic_arguments(args, kwargs)
        task = submission.from_celery(self.handler, args, kwargs, self.with_declared(options))
        return self.AsyncResult(str(task.id))

    def with_declared(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call, with those that the task itself declares."""
        declared = {name: value for name, value in self._get_exec_options().items() if name in _DECLARED}
        given = {name: value for name, value in options.items() if value is not None}
        return {
            name: value
            for name, value in {**declared, **given}.items()
            if name not in ("ignore_result", "shadow")
        }

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Try this task again after exactly so long, with the arguments it has.

        Raises ``exc``, or MaxRetriesExceededError, when it has been retried often enough.
        """
        request = self.request_stack.top
        if not isinstance(request, Request):
            return Task.retry(self, args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        if _differs(args, request.args) or _differs(kwargs, request.kwargs) or options:
            raise TypeError(f"{self.name} is durable: retry() changes neither its arguments nor its options")
        if max_retries is not None:
            self.override_max_retries = max_retries
        most = self.max_retries if max_retries is None else max_retries
        if most is not None and request.retries + 1 > most:
            if exc is not None:
                raise_with_context(exc)
            raise self.MaxRetriesExceededError(f"{self.name}[{request.id}] was retried {most} times")
        when = eta or (self.default_retry_delay if countdown is None else countdown)
        request.asked_again = Retry(exc=exc, when=when)
        if throw:
            raise request.asked_again
        return request.asked_again

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **_: Any
    ) -> None:
        """Say how far the work is. ``AsyncResult`` shows it for as long as this attempt runs."""
        request = self.request_stack.top
        if not isinstance(request, Request) or task_id not in (None, request.id):
            super().update_state(task_id, state, meta)
            return
        request.told_state, request.told_meta = state or states.STARTED, meta
        task_results.tell(request.id, request.told_state, meta)
        if isinstance(meta, dict) and (percent := _percent(meta)) is not None:
            request.running.progress(percent, str(meta.get("status", state or "")))

    def context_of(self, running: RunningTask, payload: str | bytes) -> Request:
        """The request of this attempt, whose payload is complete and in the open. Raises ValidationError for
        one that is none."""
        call = self.handler.load(payload)
        return Request(
            id=str(running.id),
            root_id=str(running.id),
            correlation_id=str(running.id),
            task=self,
            running=running,
            starts=running.starts,
            args=call.args,
            kwargs=call.kwargs,
            retries=running.attempt - 1,
            hostname=_localized[2] if len(_localized) > 2 else None,
            timelimit=[self.time_limit, self.soft_time_limit],
            ignore_result=bool(self.ignore_result),
        )

    def execute(self) -> Any:
        """Run one attempt with Celery's hooks around it. Raises Retry if it is to be tried again."""
        request = self.request
        about = (request.id, request.args, request.kwargs)
        value, state, info = None, states.SUCCESS, None
        try:
            try:
                value = self._value_of(request)
            except Ignore:
                if request.told_state == states.FAILURE:
                    raise Discard(f"ended itself: {request.told_meta}") from None
            except Retry as error:
                value, state, info = error, states.RETRY, ExceptionInfo()
                self.on_retry(error, *about, info)
                raise
            except Reject:
                raise
            except Exception as error:
                value, state, info = error, states.FAILURE, ExceptionInfo()
                self.on_failure(error, *about, info)
                raise
            else:
                self.on_success(value, *about)
        finally:
            self.after_return(state, value, *about, info)
        return None if self.ignore_result else value

    def _value_of(self, request: Request) -> Any:
        self.before_start(request.id, request.args, request.kwargs)
        value = coroutines.finished(
            (self if self._is_callable() else self.run)(*request.args, **request.kwargs)
        )
        if request.asked_again is not None:  # with throw=False
            raise request.asked_again
        return value

    def _is_callable(self) -> bool:
        """Whether a base class of the user's own wraps the call."""
        owner = next(each for each in type(self).__mro__ if "__call__" in vars(each))
        return owner not in (Task, HandlerTask, DurableTask)

    def _check_arguments(self, *args: Any, **kwargs: Any) -> None:
        if self.typing and (check := getattr(self, "__header__", None)) is not None:
            check(*args, **kwargs)


# Of what a Celery task may declare about its messages: what its calls mean by it.
_DECLARED = frozenset({"queue", "priority", "expires"})


def base_for(name: str, base: type[Task]) -> type[Task]:
    """The base of this task: the one that it asked for, made durable if CAPATAZ_DURABLE_TASKS names it."""
    if issubclass(base, DurableTask) or name.startswith("celery."):
        return base
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.DURABLE_TASKS):
        return base
    return type(base.__name__, (base, DurableTask), {"abstract": True, "__module__": base.__module__})


def register(task: Task) -> None:
    """Make a durable task's function a handler. Raises ConfigurationError for what it may not declare."""
    if not isinstance(task, DurableTask) or handlers.is_registered(task.name):
        return
    soft, hard = _limits(task)

    def run(running: RunningTask, call: Call) -> Any:
        if isinstance(task.request_stack.top, Request):
            return task.execute()
        task.request_stack.push(task.context_of(running, call.model_dump_json(exclude_unset=True)))
        try:
            return task.execute()
        finally:
            task.pop_request()

    run.__doc__, run.__module__ = task.__doc__, type(task).__module__
    fits = AfterValidator(partial(_fitting, task))
    task.handler = handlers.handler(
        task.name,
        payload=Annotated[Call, fits],
        queue=_name_of(getattr(task, "queue", None)) or settings.CELERY_TASK_DEFAULT_QUEUE,
        retry=_retry(task),
        soft_time_limit=soft,
        time_limit=hard,
        from_call=_payload,
        limit=_limit(task),
    )(run)


def _limit(task: Task) -> Limit | None:
    """The task's ``rate_limit``, which Celery keeps for each worker alone, as one limit for all of them."""
    if not task.rate_limit:
        return None
    text = str(task.rate_limit)
    try:
        if not RATE.fullmatch(text):
            text = f"{round(rate(text) * PERIODS['d'])}/d"
        return Limit(rate=text)
    except (ValueError, TypeError, KeyError):
        hint = "use a number of starts a second, or text such as 100/m: from once a day to 115 times a second"
        raise ConfigurationError(f"rate_limit of the durable task {task.name!r}: {hint}") from None


def waits(error: BaseException) -> float | None:
    """The seconds after which the task is to be tried again, if that is what its function asked for."""
    if isinstance(error, Retry):
        when = error.when
        if isinstance(when, datetime):
            when = (when.replace(tzinfo=when.tzinfo or UTC) - database_now()).total_seconds()
        return min(max(0.0, float(when or 0)), submission.MAX_DELAY)
    return REQUEUED if isinstance(error, Reject) and error.requeue else None


def _payload(args: Iterable[Any] | None, kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {"args": list(args or ()), "kwargs": dict(kwargs or {})}


def _fitting(task: DurableTask, call: Call) -> Call:
    try:
        task._check_arguments(*call.args, **call.kwargs)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return call


def _retry(task: DurableTask) -> policy.Retry:
    """Only what asks for it is tried again, and says itself after how long; this bounds how often."""
    most = policy.MAX_ATTEMPTS if task.max_retries is None else task.max_retries + 1
    base = min(float(task.default_retry_delay), policy.MAX_DELAY)
    return policy.fixed(base, attempts=min(most, policy.MAX_ATTEMPTS))


def _limits(task: DurableTask) -> tuple[float | None, float]:
    soft: float = task.soft_time_limit or 0
    hard: float = task.time_limit or MAX_TIME_LIMIT
    if hard == PlainTask.time_limit and soft != PlainTask.soft_time_limit:
        hard = max(hard, soft + AFTER_SOFT)
    if soft == PlainTask.soft_time_limit and hard <= soft:
        soft = 0
    return soft or None, min(hard, MAX_TIME_LIMIT)


def _name_of(queue: Any) -> str | None:
    return None if queue is None else str(getattr(queue, "name", queue))


def _differs(given: Any, own: Any) -> bool:
    return given is not None and type(own)(given) != own


def _percent(meta: dict[str, Any]) -> int | None:
    """How far ``{"current": 3, "total": 10}`` is, which Celery's documentation made a custom."""
    try:
        done = 100 * meta["current"] / meta["total"] if "total" in meta else meta["percent"]
        return min(100, max(0, int(done)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
