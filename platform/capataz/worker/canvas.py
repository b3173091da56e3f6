"""Celery's canvas: chains, groups and chords of handlers become workflows; what cannot is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import canvas, current_app
from celery.result import GroupResult

from capataz import handlers
from capataz.errors import Fault, InvalidSubmission
from capataz.lifecycle import submission, workflows
from capataz.lifecycle.workflows import Chain, Group, Part, Step
from capataz.models.task import new_task_id

# What a signature may carry other signatures in: its options, and the arguments of a canvas.
_OPTIONS = ("link", "link_error", "chain", "chord")
_PARTS = ("tasks", "header", "body", "task")
_KINDS = (canvas._chain, canvas.group, canvas._chord, canvas._basemap, canvas.chunks)


def refuse_handlers(*work: Any) -> None:
    """Raise InvalidSubmission if any of these signatures, or what is nested in one, is a handler's."""
    names = sorted(set(_handlers_in(work)))
    if names:
        detail = (
            f"maps, chunks, callbacks and a canvas with plain tasks in it cannot name a handler:"
            f" {', '.join(names)}; use chains, groups and chords of handlers alone"
        )
        raise InvalidSubmission([Fault("canvas", "not_supported", detail)])


def guard() -> None:
    """Make every kind of canvas look for handlers before any part of it is sent; once is enough."""
    for kind in _KINDS:
        if "apply_async" in vars(kind) and not hasattr(kind.apply_async, "__wrapped__"):
            kind.apply_async = _guarded(kind.apply_async)


def _guarded(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(apply_async)
    def guarded(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        given = dict(kwargs or {})
        body = given.pop("body", None)
        if _is_of_handlers([self, body]):
            return _submit(self, args, given, body, {**self.options, **options})
        refuse_handlers(self, body, *(options.get(name) for name in _OPTIONS))
        return apply_async(self, args, kwargs, **options)

    return guarded


def _submit(signature: Any, args: Any, kwargs: Any, body: Any, options: Mapping[str, Any]) -> Any:
    if current_app.conf.task_always_eager:
        detail = "a canvas of handlers does not run inline: with task_always_eager, call one after the other"
        raise InvalidSubmission([Fault("canvas", "not_supported", detail)])
    part = _part(signature, tuple(args or ()), kwargs, body, dict(options))
    flow = workflows.Workflow(signature.get("task", "").removeprefix("celery."))
    flow.include(part)
    flow.submit()
    return _result(part, None)


def _is_of_handlers(work: Any) -> bool:
    """Whether this is a chain, a group or a chord, and whatever is in it is a handler's."""
    names = list(_leaves(work))
    return bool(names) and all(handlers.is_registered(name) for name in names)


def _leaves(work: Any) -> Iterator[str]:
    """The names of all tasks in these signatures, those that only follow excepted."""
    for each in work:
        if not isinstance(each, Mapping):
            continue
        if not str(each.get("task")).startswith("celery."):
            yield str(each.get("task"))
        else:
            parts = each.get("kwargs") or {}
            for name in _PARTS:
                nested = parts.get(name)
                yield from _leaves(nested if isinstance(nested, list | tuple) else [nested])
            if each["task"] not in ("celery.chain", "celery.group", "celery.chord"):
                yield each["task"]  # a map, or chunks


def _part(signature: Any, args: Any, kwargs: Any, body: Any, options: dict[str, Any]) -> Part:
    """What this signature means, with what is given to that of it which starts first."""
    match signature:
        case canvas._chain():
            _refuse_following(signature.options)
            first, *others = signature.tasks
            head = _part(first, args, kwargs, None, {**options, **first.options})
            return Chain([head, *(_part(each, (), {}, None, each.options) for each in others)])
        case canvas.group():
            _refuse_following(signature.options)
            return Group(
                [_part(each, args, kwargs, None, {**options, **each.options}) for each in signature.tasks]
            )
        case canvas._chord():
            _refuse_following(signature.options)
            then = body or signature.body
            header = (
                signature.tasks
                if isinstance(signature.tasks, canvas.group)
                else canvas.group(signature.tasks)
            )
            return Chain(
                [_part(header, args, kwargs, None, options), _part(then, (), {}, None, then.options)]
            )
    return _step(signature, args, kwargs, options)


def _step(signature: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Step:
    if signature.immutable:
        args, kwargs = (), {}
    positional, named = (*args, *signature.args), {**signature.kwargs, **kwargs}
    handler = handlers.find(signature.task)
    asked = submission.asked_by_celery(
        handler, positional, named, current_app.tasks[handler.name].with_declared(options)
    )
    known = {name: getattr(asked, name) for name in submission.OPTIONS - {"type", "data", "key"}}
    given = {name: value for name, value in known.items() if value is not None and value is not False}
    own_id = submission.as_uuid(asked.key) if asked.key else new_task_id()
    if own_id is None:
        detail = "must be a UUID where a task is part of a canvas"
        raise InvalidSubmission([Fault("task_id", "bad_id", detail)])
    return Step(handler.name, asked.data, {**given, "id": own_id}, bool(signature.immutable))


def _refuse_following(options: Mapping[str, Any]) -> None:
    faults = [
        Fault(name, "not_supported", "a canvas of handlers has no callbacks: chain what follows with |")
        for name in ("link", "link_error")
        if options.get(name)
    ]
    if faults:
        raise InvalidSubmission(faults)


def _result(part: Part, parent: Any) -> Any:
    """Celery's result of this part: of a chain the last one's, each with the one before as its parent."""
    match part:
        case Step():
            return current_app.AsyncResult(str(part.options["id"]), parent=parent)
        case Chain():
            for each in part.parts:
                parent = _result(each, parent)
            return parent
    return GroupResult(str(new_task_id()), [_result(each, parent) for each in part.parts], parent=parent)


def _handlers_in(work: Any) -> Iterator[str]:
    if isinstance(work, list | tuple):
        for each in work:
            yield from _handlers_in(each)
    elif isinstance(work, Mapping) and isinstance(work.get("task"), str):
        if handlers.is_registered(work["task"]):
            yield work["task"]
        options, parts = work.get("options") or {}, work.get("kwargs") or {}
        yield from _handlers_in([options.get(name) for name in _OPTIONS])
        if work["task"].startswith("celery."):
            yield from _handlers_in([parts.get(name) for name in _PARTS])
