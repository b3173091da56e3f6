"""Celery's canvas: chains, groups and chords of handlers do not exist yet, and are refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import canvas

from capataz import handlers
from capataz.errors import Fault, InvalidSubmission

# What a signature may carry other signatures in: its options, and the arguments of a canvas.
_OPTIONS = ("link", "link_error", "chain", "chord")
_PARTS = ("tasks", "header", "body", "task")
_KINDS = (canvas._chain, canvas.group, canvas._chord, canvas._basemap, canvas.chunks)


def refuse_handlers(*work: Any) -> None:
    """Raise InvalidSubmission if any of these signatures, or what is nested in one, is a handler's."""
    names = sorted(set(_handlers_in(work)))
    if names:
        detail = (
            f"chains, groups, chords, maps and callbacks cannot name a handler yet: {', '.join(names)};"
            " submit what follows from within the handler, or when its task has ended"
        )
        raise InvalidSubmission([Fault("canvas", "not_supported", detail)])


def guard() -> None:
    """Make every kind of canvas refuse handlers before any part of it is sent; once is enough."""
    for kind in _KINDS:
        if "apply_async" in vars(kind) and not hasattr(kind.apply_async, "__wrapped__"):
            kind.apply_async = _guarded(kind.apply_async)


def _guarded(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(apply_async)
    def guarded(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        body = kwargs.get("body") if isinstance(kwargs, Mapping) else None
        refuse_handlers(self, body, *(options.get(name) for name in _OPTIONS))
        return apply_async(self, args, kwargs, **options)

    return guarded


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
