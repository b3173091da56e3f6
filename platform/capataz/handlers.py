"""Handlers: the functions that do the work, each registered under a stable name."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NoReturn, TypeVar

from django.conf import settings
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from capataz import flow as flows
from capataz import jsontext, uniqueness
from capataz import priority as priorities
from capataz import sensitive as sensitivity
from capataz.errors import (
    ConfigurationError,
    Discarded,
    Fault,
    InvalidSubmission,
    RetryIn,
    Snoozed,
    TaskCancelled,
)
from capataz.flow import Fairness, Flow, Limit
from capataz.policy import MAX_DELAY, Circuit, Keep, Retry, exponential
from capataz.uniqueness import Policy as UniquePolicy

TYPE_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
# Names that Celery has made from modules and functions.
DURABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
QUEUE_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")

MAX_TIME_LIMIT = 24 * 3600.0
LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
MAX_CANCEL_GRACE = 600.0
SUBMITTING_ROLES = ("producer", "operator", "admin")

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class Parent:
    """A task that another one has waited for, as it ended. ``feeds`` is what its result was given as."""

    id: uuid.UUID
    name: str
    state: str
    result: Any
    error: str | None
    feeds: str = ""


@dataclass
class RunningTask:
    """What a handler is told about the task it is working on.

    ``attempt`` is 1 for the first attempt and counts failures only; ``starts`` counts every start, also
    those whose worker died.
    """

    id: uuid.UUID
    type: str
    attempt: int
    starts: int
    report_progress: Callable[[int, str], None] = lambda percent, message: None
    report_log: Callable[[int, str], None] = lambda level, message: None
    enter_circuit: Callable[[str, Circuit | None], AbstractContextManager[object]] = lambda name, policy: (
        nullcontext()
    )
    cancelled: bool = False
    """Whether somebody has asked for it to be cancelled: a handler with a ``cancel_grace`` looks at it."""
    find_parents: Callable[[], list[Parent]] = list
    add_task: Callable[..., uuid.UUID] | None = None

    def stop_if_cancelled(self) -> None:
        """Raise TaskCancelled if the task was cancelled: for places where the work may well be left."""
        if self.cancelled:
            raise TaskCancelled("the task was cancelled while it ran")

    def circuit(self, name: str, policy: Circuit | None = None) -> AbstractContextManager[object]:
        """A context in which calls to one other side, such as a host, are made.

        Raises CircuitOpen on entering, if the calls of all processes have failed there too often; what is
        raised inside counts as a failure.
        """
        return self.enter_circuit(name, policy)

    @cached_property
    def parents(self) -> list[Parent]:
        """The tasks that this one has waited for, in the order in which they were named, as they ended."""
        return self.find_parents()

    @property
    def results(self) -> dict[str, Any]:
        """The results of those of them that succeeded, by name."""
        return {each.name: each.result for each in self.parents if each.state == "succeeded"}

    def add(self, type: str, data: Any = None, **options: Any) -> uuid.UUID:
        """Add a task to this one's workflow; returns its id. It waits until this one has succeeded, unless
        ``after=()`` lets it start at once; ``name``, ``on_failure`` and the rest are as for ``Workflow.add``.

        A repeated attempt that adds a task of the same name, or in the same place, adds none.
        """
        if self.add_task is None:
            raise RuntimeError("a task that runs outside of the platform cannot add others")
        return self.add_task(type, data, **options)

    def progress(self, percent: int, message: str = "") -> None:
        """Tell the outside how far the work is: 0 to 100 percent, and a line of at most 200 characters.

        Raises ValueError if ``percent`` is out of range.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"progress is 0 to 100 percent, not {percent}")
        self.report_progress(int(percent), message[:200])

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the log of this attempt, whatever LOG_LEVEL is: debug, info, warning or error.

        What the handler says through ``logging`` is kept there too, from LOG_LEVEL on.

        Raises ValueError for another level.
        """
        if level not in LOG_LEVELS:
            raise ValueError(f"level must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
        self.report_log(LOG_LEVELS[level], str(message))

    def retry_in(self, seconds: float, reason: str = "") -> NoReturn:
        """End this attempt as failed; the next one comes in exactly so many seconds, if one is left.

        Never returns, and ``except Exception`` does not stop it. Raises ValueError for seconds out of range.
        """
        raise RetryIn(reason, _wait(seconds))

    def snooze(self, seconds: float, reason: str = "") -> NoReturn:
        """Put the task off for so many seconds; no attempt is spent.

        Never returns, and ``except Exception`` does not stop it. A task may be snoozed as often as the
        setting ``CAPATAZ_MAX_SNOOZES`` says, and until it expires. Raises ValueError for seconds out of
        range.
        """
        raise Snoozed(reason, _wait(seconds))

    def discard(self, reason: str = "") -> NoReturn:
        """Make the task a dead letter now; it is not tried again.

        Never returns, and ``except Exception`` does not stop it.
        """
        raise Discarded(reason)


def _wait(seconds: float) -> float:
    if not 0 <= seconds <= MAX_DELAY:
        raise ValueError(f"a task waits 0 to {MAX_DELAY:.0f} seconds, not {seconds}")
    return float(seconds)


@dataclass(frozen=True, eq=False)
class Handler(Generic[Payload]):
    """A registered handler and the policy it declares.

    Time limits are seconds: at the soft one ``SoftTimeLimitExceeded`` is raised inside the function, at
    the hard one its process is killed; both make a failed attempt.
    """

    name: str
    function: Callable[[RunningTask, Payload], Any]
    payload: TypeAdapter[Payload]
    queue: str
    priority: int
    retry: Retry
    soft_time_limit: float | None
    time_limit: float
    exclusive: bool
    sensitive: sensitivity.Declared
    role: str
    cancel_grace: float
    keep: Keep
    unique: UniquePolicy | None
    from_call: Callable[[Any, Any], Any]
    circuit: Circuit | None
    flow: Flow

    def __call__(self, task: RunningTask, payload: Payload) -> Any:
        """Run the function here and now, without a task."""
        return self.function(task, payload)

    def parse(self, data: Any) -> str:
        """The payload as JSON text, validated against the handler's model.

        Raises InvalidSubmission naming every fault, each with a pointer that starts at ``data``.
        """
        try:
            # Round trip through JSON, so that the row holds what a worker will be able to read back.
            model = self.payload.validate_python(data)
            text = self.payload.dump_json(model, by_alias=True, exclude_unset=True).decode()
        except ValidationError as error:
            raise InvalidSubmission(list(_faults(error))) from None
        except ValueError as error:  # what is not JSON at all, such as a lone surrogate
            raise InvalidSubmission([Fault("data", "not_json", str(error))]) from None
        if "null" in text and not _is_finite(data):  # pydantic writes NaN and the infinities as null
            raise InvalidSubmission([Fault("data", "not_finite", "must not contain NaN or an infinity")])
        if jsontext.has_nul(text):
            raise InvalidSubmission([Fault("data", "nul", "must not contain the character U+0000")])
        if sensitivity.has_envelope(text):
            detail = f"must not use the name {sensitivity.ENVELOPE!r}, which marks encrypted values"
            raise InvalidSubmission([Fault("data", "reserved_name", detail)])
        return text

    def parse_incomplete(self, data: Any) -> str:
        """As ``parse``, of a payload that is given more before it is used: what it lacks is no fault."""
        if self.is_durable:
            return self._parse_without_first(data)
        try:
            return self.parse(data)
        except InvalidSubmission as error:
            faults = [fault for fault in error.faults if fault.code != "missing"]
            if faults or not isinstance(data, dict):
                raise InvalidSubmission(faults or error.faults) from None
        try:
            text = json.dumps(to_jsonable_python(data), allow_nan=False)
        except ValueError as error:
            raise InvalidSubmission([Fault("data", "not_json", str(error))]) from None
        if jsontext.has_nul(text) or sensitivity.has_envelope(text):
            detail = f"must contain neither the character U+0000 nor the name {sensitivity.ENVELOPE!r}"
            raise InvalidSubmission([Fault("data", "not_json", detail)])
        return text

    def _parse_without_first(self, data: Any) -> str:
        """The payload of a durable task that is given its first argument before it runs."""
        given = data if isinstance(data, dict) else {}
        args = given.get("args", [])
        if not isinstance(args, list):
            return self.parse(data)  # which says what is wrong
        call = json.loads(self.parse({**given, "args": [None, *args]}))
        return json.dumps({**call, "args": call["args"][1:]}, ensure_ascii=False)

    def fields(self) -> list[str] | None:
        """The names that the payload's model declares, in their order; None if any object will do."""
        properties = self.payload.json_schema().get("properties")
        return None if properties is None else list(properties)

    def load(self, text: str | bytes) -> Payload:
        """The payload from the JSON text that ``parse`` returned."""
        return self.payload.validate_json(text)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task with the payload given as keyword arguments, as Celery's ``delay``."""
        return self.celery_task.delay(*args, **kwargs)

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Submit a task with options such as ``countdown``, ``eta``, ``priority``, ``expires``."""
        return self.celery_task.apply_async(*args, **options)

    @property
    def is_durable(self) -> bool:
        """Whether its function was written for Celery, and its payload is the arguments of a call."""
        return self.from_call is not payload_of

    @property
    def celery_task(self) -> Any:
        """The Celery task of the same name."""
        from celery import current_app

        return current_app.tasks[self.name]


_registry: dict[str, Handler[Any]] = {}
_queues: set[str] = set()
_listeners: list[Callable[[Handler[Any]], None]] = []


def handler(
    name: str,
    *,
    payload: Any = None,
    queue: str = "default",
    priority: int | str = priorities.DEFAULT,
    retry: Retry | None = None,
    soft_time_limit: float | None = None,
    time_limit: float = 300,
    exclusive: bool = False,
    sensitive: Sequence[str] = (),
    unique: UniquePolicy | None = None,
    public: Sequence[str] = (),
    role: str = "producer",
    cancel_grace: float = 0,
    keep: Keep | None = None,
    from_call: Callable[[Any, Any], Any] | None = None,
    circuit: Circuit | None = None,
    limit: Limit | Sequence[Limit] | None = None,
    fairness: Fairness | None = None,
) -> Callable[[Callable[[RunningTask, Any], Any]], Handler[Any]]:
    """Register a function as the handler of tasks of type ``name``.

    ``payload`` is a pydantic model or any annotation that pydantic can validate; without it, any JSON
    object is accepted. Limits are seconds. An ``exclusive`` handler is killed by a worker that has been
    cut off from PostgreSQL for so long that its tasks are about to be run elsewhere; without it, a
    partition of the network may let a task run beside its successor until the worker is back.
    ``unique`` says which tasks are the same one, and what becomes of the second.
    ``sensitive`` values, named by paths such as ``payload.password`` or ``result``, are encrypted in the
    rows and masked where they are shown; ``public`` ones are shown although their names sound secret.
    ``role`` is the least that a caller of the API needs for submitting: producer, operator or admin.
    When a running task is cancelled, ``task.cancelled`` is set; ``cancel_grace`` seconds later TaskCancelled
    is raised inside the function, and five seconds after that its process is killed.
    ``keep`` says how long or how many ended tasks are kept, where that differs from the settings.
    ``from_call`` makes the payload of a Celery call's args and kwargs.
    A ``circuit`` holds the type's tasks back while their attempts fail one after the other.

    ``limit`` is one limit of concurrency or rate, or several. With ``fairness`` the values at a place in the
    payload take turns.

    Raises ConfigurationError for a declaration that makes no sense, or a name that is taken.
    """
    _check_declaration(
        name, queue, soft_time_limit, time_limit, TYPE_NAME if from_call is None else DURABLE_NAME
    )
    if not 0 <= cancel_grace <= MAX_CANCEL_GRACE:
        raise ConfigurationError(f"cancel_grace of {name!r} must be 0 to {MAX_CANCEL_GRACE:.0f} seconds")
    if role not in SUBMITTING_ROLES:
        raise ConfigurationError(f"role of {name!r} must be one of {', '.join(SUBMITTING_ROLES)}")
    try:
        values = sensitivity.Declared(sensitive, public)
    except ConfigurationError as error:
        raise ConfigurationError(f"sensitive values of {name!r}: {error}") from None
    flow = flows.declared(name, limit, fairness)
    for place in flow.places:
        if values.covers(tuple(place.split("."))):
            detail = "is sensitive, and what a type is limited by lies in the open"
            raise ConfigurationError(f"limit of {name!r}: {place} {detail}")
    try:
        own_priority = priorities.parse(priority)
    except ValueError as error:
        raise ConfigurationError(f"priority of {name!r} {error}") from None

    adapter: TypeAdapter[Any] = TypeAdapter(dict[str, Any] if payload is None else payload)
    if unique is not None:
        for detail in unique_faults(unique, adapter, values):
            raise ConfigurationError(f"unique of {name!r}: {detail}")

    def register(function: Callable[[RunningTask, Any], Any]) -> Handler[Any]:
        made: Handler[Any] = Handler(
            name=name,
            function=function,
            payload=adapter,
            queue=queue,
            priority=own_priority,
            retry=retry or _default_retry(),
            soft_time_limit=soft_time_limit,
            time_limit=time_limit,
            exclusive=exclusive,
            sensitive=values,
            role=role,
            cancel_grace=cancel_grace,
            keep=keep or Keep(),
            unique=unique,
            from_call=from_call or payload_of,
            circuit=circuit,
            flow=flow,
        )
        _registry[name] = made
        for listener in _listeners:
            listener(made)
        return made

    return register


def name_queue(name: str) -> None:
    """Have workers take from this queue although no handler names it. Raises ConfigurationError."""
    if not QUEUE_NAME.fullmatch(name):
        raise ConfigurationError(f"queue {name!r} must match {QUEUE_NAME.pattern}")
    _queues.add(name)


def queues() -> set[str]:
    """The queues that handlers name, and those named beside them."""
    return _queues | {handler.queue for handler in _registry.values()}


def registered() -> Iterator[Handler[Any]]:
    """Every registered handler, by name."""
    return iter([_registry[name] for name in sorted(_registry)])


def find(name: str) -> Handler[Any]:
    """The handler of this name. Raises InvalidSubmission, listing the known types, if there is none."""
    try:
        return _registry[name]
    except (KeyError, TypeError):
        known = ", ".join(sorted(_registry))
        detail = f"no handler is registered as {name!r}; known types: {known}"
        raise InvalidSubmission([Fault("type", "unknown_type", detail)]) from None


def unique_faults(
    policy: UniquePolicy, payload: TypeAdapter[Any], values: sensitivity.Declared
) -> Iterator[str]:
    """Why tasks with such a payload cannot be unique in this way."""
    if policy.replaces and values.touches(sensitivity.PAYLOAD):
        yield "a payload with sensitive values is bound to its task, and cannot be given to another"
    for path in uniqueness.unknown_paths(policy, payload.json_schema(by_alias=True)) if policy.by else ():
        yield f"by names {path}, which the payload does not have"


def declared_sensitive(name: str) -> sensitivity.Declared:
    """What the handler of this name says about sensitive values; nothing where there is none."""
    known = _registry.get(name)
    return known.sensitive if known else sensitivity.NOTHING


def is_registered(name: str) -> bool:
    """Whether tasks of this type have a handler in this process."""
    return name in _registry


def on_registration(listener: Callable[[Handler[Any]], None]) -> None:
    """Call ``listener`` with every handler registered so far and from now on."""
    _listeners.append(listener)
    for known in registered():
        listener(known)


def _is_finite(data: Any) -> bool:
    try:
        json.dumps(data, allow_nan=False, default=str)
    except ValueError:
        return False
    return True


def _default_retry() -> Retry:
    return exponential(base=settings.RETRY_DELAY / 1000, attempts=1 + settings.MAX_RETRIES)


def payload_of(args: Any, kwargs: Any) -> Any:
    """The payload that a Celery call means: its keyword arguments, or its one positional object."""
    positional = list(args or ())
    if not positional:
        return dict(kwargs or {})
    if len(positional) == 1 and not kwargs and isinstance(positional[0], dict):
        return positional[0]
    detail = "give the payload as keyword arguments, or as one positional object"
    raise InvalidSubmission([Fault("data", "positional", detail)])


def _check_declaration(
    name: str, queue: str, soft: float | None, hard: float, names: re.Pattern[str]
) -> None:
    if not names.fullmatch(name):
        raise ConfigurationError(f"handler name {name!r} must match {names.pattern}")
    if name in _registry:
        raise ConfigurationError(f"the handler {name!r} is registered twice")
    if not QUEUE_NAME.fullmatch(queue):
        raise ConfigurationError(f"queue {queue!r} of {name!r} must match {QUEUE_NAME.pattern}")
    if not 0 < hard <= MAX_TIME_LIMIT:
        raise ConfigurationError(f"time_limit of {name!r} must be above 0 and at most {MAX_TIME_LIMIT:.0f} s")
    if soft is not None and not 0 < soft < hard:
        raise ConfigurationError(f"soft_time_limit of {name!r} must be above 0 and below its time_limit")


def _faults(error: ValidationError) -> Iterator[Fault]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        pointer = "/".join(["data", *(str(part) for part in fault["loc"])])
        yield Fault(pointer, fault["type"], fault["msg"])
