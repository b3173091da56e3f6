"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_EVERY = 0.02  # seconds


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true within ``seconds``. Looks at least once."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_EVERY)
    return True
