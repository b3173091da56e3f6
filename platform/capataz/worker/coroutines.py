"""Coroutine functions: run to their end by one event loop for each process."""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import Any

_runner: tuple[int, asyncio.Runner] | None = None


def finished(value: Any) -> Any:
    """What a function came to: its value, or that of the coroutine that it returned."""
    return _loop_of_this_process().run(value) if inspect.iscoroutine(value) else value


def _loop_of_this_process() -> asyncio.Runner:
    """Made once: a loop costs more than most handlers. A forked child never uses its parent's."""
    global _runner
    if _runner is None or _runner[0] != os.getpid():
        _runner = os.getpid(), asyncio.Runner()
    return _runner[1]
