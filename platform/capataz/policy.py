"""What a handler declares about its tasks: retries now; limits and uniqueness build on the same shape."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from capataz import backoff
from capataz.errors import ConfigurationError

MAX_ATTEMPTS = 1000
MAX_DELAY = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Retry:
    """How often a task is tried, and how long it waits in between.

    ``attempts`` counts all attempts, the first included. ``base`` and ``cap`` are seconds; with
    ``jitter`` the wait is drawn between zero and the exponential value, without it it is that value.
    """

    attempts: int
    base: float
    cap: float
    kind: str = "exponential"
    jitter: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ConfigurationError(f"attempts must be 1 to {MAX_ATTEMPTS}, not {self.attempts}")
        if not 0 <= self.base <= self.cap <= MAX_DELAY:
            raise ConfigurationError(f"needs 0 <= base <= cap <= {MAX_DELAY:.0f} seconds")

    def delay(self, failures: int) -> timedelta:
        """The wait after the ``failures``-th failed attempt, counted from 1."""
        if self.kind == "fixed":
            return timedelta(seconds=self.base)
        if self.jitter:
            return backoff.full_jitter(failures, base=self.base, cap=self.cap)
        return timedelta(seconds=backoff.exponential_ceiling(failures, base=self.base, cap=self.cap))


def exponential(*, base: float = 2, cap: float = 300, attempts: int = 3, jitter: bool = True) -> Retry:
    """Wait up to ``base`` seconds, doubled after each failure, at most ``cap`` seconds."""
    return Retry(attempts=attempts, base=base, cap=cap, jitter=jitter)


def fixed(delay: float = 5, *, attempts: int = 3) -> Retry:
    """Wait ``delay`` seconds after every failure."""
    return Retry(attempts=attempts, base=delay, cap=delay, kind="fixed")


def never() -> Retry:
    """One attempt, no retry."""
    return Retry(attempts=1, base=0, cap=0, kind="fixed")
