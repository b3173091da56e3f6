"""How long a task waits before it is tried again."""

from __future__ import annotations

import random
from datetime import timedelta


def full_jitter(failures: int, *, base: float, cap: float) -> timedelta:
    """How long a task waits after its ``failures``-th failed attempt, counted from 1.

    A random wait between zero and ``base`` seconds doubled once per earlier failure, at most
    ``cap`` seconds: "full jitter", so that tasks that failed together do not return together.

    Raises ValueError if ``failures`` is below 1.
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return timedelta(seconds=random.uniform(0, exponential_ceiling(failures, base=base, cap=cap)))


def exponential_ceiling(failures: int, *, base: float, cap: float) -> float:
    """The longest wait in seconds that ``full_jitter`` may choose after ``failures`` failures."""
    if failures < 1:
        raise ValueError("failures is counted from 1")
    # The exponent is bounded because 2.0 ** 1024 overflows; every cap is far below 2 ** 64 seconds.
    return min(cap, base * 2.0 ** min(failures - 1, 64))


# A task that lost its worker waits nothing the first time (one death tells nothing about the task),
# and longer from the second on: 2, 4, 8 ... seconds, at most a minute.
LOSS_BASE = 2.0
LOSS_CAP = 60.0
