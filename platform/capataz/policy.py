"""What a handler, or a task, declares: retries and retention. More policies build on the same shape."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from django.conf import settings

from capataz import backoff
from capataz.errors import ConfigurationError

MAX_ATTEMPTS = 1000
MAX_DELAY = 7 * 24 * 3600.0
DEFAULT_ATTEMPTS = 3
# The longest wait that a task's own exponential backoff grows to, in seconds.
BACKOFF_CAP = 24 * 3600.0
MAX_COUNT = 1_000_000
MAX_AGE = 36500 * 24 * 3600.0
OUTCOMES = ("succeeded", "dead", "cancelled", "expired")
JITTERS = ("full", "none")

Rules = Mapping[Any, "Retry"]  # by classes of exceptions


@dataclass(frozen=True)
class Retry:
    """How often a task is tried, and how long it waits in between.

    ``attempts`` counts all attempts, the first included. ``base`` and ``cap`` are seconds; with
    ``jitter`` the wait is drawn between zero and the exponential value, without it it is that value.
    ``on`` has rules of their own for failures by some classes of exceptions: how long such a failure waits,
    and, where the rule names ``attempts``, after how many attempts the task is not tried again.
    """

    attempts: int
    base: float
    cap: float
    kind: str = "exponential"
    jitter: bool | str = True
    on: Rules = field(default_factory=dict)
    names_attempts: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ConfigurationError(f"attempts must be 1 to {MAX_ATTEMPTS}, not {self.attempts}")
        if not 0 <= self.base <= self.cap <= MAX_DELAY:
            raise ConfigurationError(f"needs 0 <= base <= cap <= {MAX_DELAY:.0f} seconds")
        if isinstance(self.jitter, str):
            if self.jitter not in JITTERS:
                raise ConfigurationError(f"jitter must be full or none, not {self.jitter!r}")
            object.__setattr__(self, "jitter", self.jitter == "full")
        for kind, rule in self.on.items():
            _check_rule(kind, rule)

    def delay(self, failures: int) -> timedelta:
        """The wait after the ``failures``-th failed attempt, counted from 1."""
        if self.kind == "fixed":
            return timedelta(seconds=self.base)
        if self.jitter:
            return backoff.full_jitter(failures, base=self.base, cap=self.cap)
        return timedelta(seconds=backoff.exponential_ceiling(failures, base=self.base, cap=self.cap))

    def rule_for(self, error: BaseException) -> Retry | None:
        """The rule for failures by this exception: that of its own class, or of the nearest one above it."""
        for kind in type(error).__mro__:
            if kind in self.on:
                return self.on[kind]
        return None

    def allows(self, failures: int) -> bool:
        """Whether, as a rule, it lets a task be tried again after so many failures."""
        return not self.names_attempts or failures < self.attempts


def _check_rule(kind: Any, rule: Any) -> None:
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise ConfigurationError(f"on needs classes of exceptions, not {kind!r}")
    if not isinstance(rule, Retry) or rule.on:
        raise ConfigurationError(
            f"the rule for {kind.__name__} must be exponential(...), fixed(...) or never(), without on"
        )


def exponential(
    *,
    base: float = 2,
    cap: float = 300,
    attempts: int | None = None,
    jitter: bool | str = True,
    on: Rules | None = None,
) -> Retry:
    """Wait up to ``base`` seconds, doubled after each failure, at most ``cap`` seconds.

    ``jitter`` is ``"full"`` (or True) or ``"none"`` (or False), with which it waits exactly that long.
    """
    return Retry(
        attempts=DEFAULT_ATTEMPTS if attempts is None else attempts,
        base=base,
        cap=cap,
        jitter=jitter,
        on=on or {},
        names_attempts=attempts is not None,
    )


def fixed(delay: float = 5, *, attempts: int | None = None, on: Rules | None = None) -> Retry:
    """Wait ``delay`` seconds after every failure."""
    exact = exponential(base=delay, cap=delay, attempts=attempts, on=on)
    return replace(exact, kind="fixed", jitter=False)


def never() -> Retry:
    """One attempt, no retry."""
    return Retry(attempts=1, base=0, cap=0, kind="fixed")


# --- Circuits -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Circuit:
    """When calls stop for a while because they fail, and how they begin again.

    ``failures`` in a row open it. After ``reset`` seconds it is half open: at most ``probes`` calls are under
    way at a time. ``successes`` of them close it; a failure opens it again, for ``growth`` times as long, at
    most ``longest`` seconds. A call that takes longer than ``timeout`` seconds is a failure, however it ends.
    Exceptions of the classes in ``ignore`` say nothing about the other side.
    """

    failures: int = field(default_factory=lambda: settings.FAILURE_THRESHOLD)
    timeout: float = field(default_factory=lambda: settings.CALL_TIMEOUT / 1000)
    reset: float = field(default_factory=lambda: settings.RESET_TIMEOUT / 1000)
    probes: int = 1
    successes: int = 1
    growth: float = 1
    longest: float = 3600
    ignore: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        for name in ("failures", "probes", "successes"):
            if not 1 <= getattr(self, name) <= MAX_ATTEMPTS:
                raise ConfigurationError(f"{name} of a circuit must be 1 to {MAX_ATTEMPTS}")
        if not 0 < self.timeout <= MAX_DELAY:
            raise ConfigurationError(
                f"timeout of a circuit must be above 0 and at most {MAX_DELAY:.0f} seconds"
            )
        if not 0 < self.reset <= MAX_DELAY or not 0 < self.longest <= MAX_DELAY:
            detail = f"must be above 0 and at most {MAX_DELAY:.0f} seconds"
            raise ConfigurationError(f"reset and longest of a circuit {detail}")
        if not 1 <= self.growth <= 10:
            raise ConfigurationError("growth of a circuit must be 1 to 10")

    def rest(self, openings: int) -> float:
        """Seconds that it stays open, when it has opened for the ``openings``-th time in a row."""
        grown = self.reset * self.growth ** min(openings - 1, 100)
        return max(self.reset, min(grown, self.longest))


# --- What a failure asks for ---------------------------------------------------------------------------


def asked_wait(error: BaseException) -> float | None:
    """The seconds that an exception asks to wait: by its ``retry_after``, or by the header Retry-After of the
    response that it carries, as those of httpx and requests do. None if it does not ask, or not plainly."""
    try:
        asked = getattr(error, "retry_after", None)
        if asked is None:
            headers = getattr(getattr(error, "response", None), "headers", None)
            asked = headers.get("Retry-After") if isinstance(headers, Mapping) else None
        seconds = None if asked is None else _seconds_until(asked)
    except Exception:  # it is anybody's exception
        return None
    if seconds is None or math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), MAX_DELAY)


def _seconds_until(asked: Any) -> float | None:
    """How far off this is: seconds, a length of time, a point of time, or an HTTP date."""
    if isinstance(asked, str):
        try:
            asked = float(asked)
        except ValueError:
            asked = parsedate_to_datetime(asked)
    if isinstance(asked, timedelta):
        return asked.total_seconds()
    if isinstance(asked, datetime):
        return (asked if asked.tzinfo else asked.replace(tzinfo=UTC)).timestamp() - time.time()
    if isinstance(asked, int | float) and not isinstance(asked, bool):
        return float(asked)
    return None


# --- A task's own backoff -----------------------------------------------------------------------------


def parse_backoff(given: Any) -> str | None:
    """A task's own backoff as it is kept, compact JSON; None if there is none.

    It is ``{"type": "exponential" | "fixed", "delay": milliseconds, "jitter": "full" | "none"}``, or the type
    alone (2 s doubled each time without jitter, and 1 s), or a number: fixed, in milliseconds.
    Raises ValueError saying what is allowed.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = {"type": given, "delay": 1000 if given == "fixed" else 2000, "jitter": "none"}
    elif isinstance(given, int | float) and not isinstance(given, bool):
        given = {"type": "fixed", "delay": given}
    if not isinstance(given, Mapping) or not set(given) <= {"type", "delay", "jitter"}:
        raise ValueError("must be an object with type, delay (milliseconds) and jitter")
    kind, delay = given.get("type"), given.get("delay")
    if kind not in ("exponential", "fixed"):
        raise ValueError("its type must be exponential or fixed")
    if not (isinstance(delay, int | float) and is_number(delay) and 0 <= delay <= BACKOFF_CAP * 1000):
        raise ValueError(f"its delay must be 0 to {BACKOFF_CAP * 1000:.0f} milliseconds")
    jitter = given.get("jitter")
    if jitter is None:
        jitter = "full" if kind == "exponential" else "none"
    if jitter not in JITTERS or (kind == "fixed" and jitter != "none"):
        raise ValueError("its jitter must be full or none; a fixed one has none")
    return json.dumps({"type": kind, "delay": delay, "jitter": jitter})


def own_backoff(kept: str) -> Retry:
    """The retry policy that a kept backoff stands for; of its attempts the task itself knows more."""
    given = json.loads(kept)
    base = given["delay"] / 1000
    if given["type"] == "fixed":
        return fixed(base)
    return exponential(base=base, cap=BACKOFF_CAP, jitter=given["jitter"])


# --- Retention ----------------------------------------------------------------------------------------


class Keep:
    """For how long ended tasks of a type are kept, or how many of them, by outcome.

    Each is a number (so many are kept, the newest), a timedelta (for so long after their end), or
    ``{"age": seconds, "count": number}`` for both: a task goes as soon as either says so. What is not named
    follows the settings, and so does the age of what only has a number.
    """

    def __init__(
        self, *, succeeded: Any = None, dead: Any = None, cancelled: Any = None, expired: Any = None
    ):
        given = dict(zip(OUTCOMES, (succeeded, dead, cancelled, expired), strict=True))
        self.rules: dict[str, dict[str, float]] = {}
        for outcome, rule in given.items():
            try:
                parsed = parse_removal({"age": rule.total_seconds()} if isinstance(rule, timedelta) else rule)
            except ValueError as error:
                raise ConfigurationError(f"keep {outcome}: {error}") from None
            if parsed:
                self.rules[outcome] = parsed


def parse_removal(given: Any) -> dict[str, float]:
    """How an ended task is removed: ``{"age": seconds, "count": number}`` with one of them or both; empty if
    as the settings say.

    True: at the next pruning. A number: all but so many, the newest. False or None: as the settings say.
    Raises ValueError saying what is allowed.
    """
    if given is None or given is False:
        return {}
    if given is True:
        return {"age": 0}
    if is_number(given):
        given = {"count": given}
    if not isinstance(given, Mapping) or not given or not set(given) <= {"age", "count"}:
        raise ValueError("must be true, false, how many to keep, or an object with age (seconds) and count")
    rule = {name: value for name, value in given.items() if value is not None}
    if "age" in rule and not (is_number(rule["age"]) and 0 <= rule["age"] <= MAX_AGE):
        raise ValueError(f"its age must be 0 to {MAX_AGE:.0f} seconds")
    if "count" in rule and not (type(rule["count"]) is int and 0 <= rule["count"] <= MAX_COUNT):
        raise ValueError(f"how many to keep must be 0 to {MAX_COUNT}")
    return rule


def is_number(value: Any) -> bool:
    """Whether this is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
