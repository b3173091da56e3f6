"""Coroutine functions: each is run to its end in an event loop of its own.

A loop that were kept would keep what a task has left in it, and the context that it has changed.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any


def finished(value: Any) -> Any:
    """What a function came to: its value, or that of the coroutine that it returned.

    A soft limit or a cancel cancels the coroutine where it waits, and is raised when it has cleaned up.
    """
    return asyncio.run(value) if inspect.iscoroutine(value) else value
