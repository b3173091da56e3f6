"""What a handler may declare about its retries."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz.errors import ConfigurationError, RetryLater
from capataz.policy import (
    MAX_ATTEMPTS,
    MAX_DELAY,
    Keep,
    Retry,
    asked_wait,
    exponential,
    fixed,
    never,
    own_backoff,
    parse_backoff,
    parse_removal,
)

waits = st.floats(min_value=0, max_value=MAX_DELAY)


def test_exponential_without_jitter_doubles_up_to_its_cap() -> None:
    policy = exponential(base=1, cap=5, attempts=9, jitter=False)
    assert [policy.delay(failures).total_seconds() for failures in range(1, 6)] == [1, 2, 4, 5, 5]


@given(st.integers(1, MAX_ATTEMPTS))
def test_exponential_with_jitter_never_waits_longer_than_without(failures: int) -> None:
    longest = exponential(base=2, cap=300, jitter=False).delay(failures)
    assert timedelta() <= exponential(base=2, cap=300).delay(failures) <= longest


@given(waits, st.integers(1, MAX_ATTEMPTS))
def test_fixed_waits_the_same_after_every_failure(wait: float, failures: int) -> None:
    assert fixed(wait).delay(failures) == timedelta(seconds=wait)


def test_never_allows_one_attempt() -> None:
    assert never().attempts == 1


@given(waits, waits, st.integers(1, MAX_ATTEMPTS), st.integers(1, MAX_ATTEMPTS))
def test_no_policy_waits_longer_than_the_longest_delay(
    a: float, b: float, attempts: int, failures: int
) -> None:
    policy = exponential(base=min(a, b), cap=max(a, b), attempts=attempts)
    assert policy.delay(failures) <= timedelta(seconds=MAX_DELAY)


@pytest.mark.parametrize("attempts", [0, -1, MAX_ATTEMPTS + 1])
def test_attempts_out_of_range_are_refused(attempts: int) -> None:
    with pytest.raises(ConfigurationError, match=f"1 to {MAX_ATTEMPTS}"):
        fixed(attempts=attempts)


@pytest.mark.parametrize(
    ("base", "cap"),
    [(-1, 5), (5, 4), (0, MAX_DELAY + 1), (math.nan, 5), (1, math.nan), (math.inf, math.inf)],
)
def test_waits_that_make_no_sense_are_refused(base: float, cap: float) -> None:
    with pytest.raises(ConfigurationError, match="0 <= base <= cap"):
        exponential(base=base, cap=cap)


def test_a_policy_cannot_be_changed_after_it_was_declared() -> None:
    with pytest.raises(AttributeError):
        Retry(attempts=1, base=0, cap=0).attempts = 2  # type: ignore[misc]


def test_jitter_may_be_named() -> None:
    assert exponential(jitter="full") == exponential(jitter=True)
    assert [exponential(jitter="none").delay(n).total_seconds() for n in (1, 2, 3)] == [2, 4, 8]
    with pytest.raises(ConfigurationError, match="full or none"):
        exponential(jitter="some")


# Rules for classes of exceptions.


def test_the_nearest_class_decides_whatever_the_order() -> None:
    rules = {Exception: fixed(1), LookupError: fixed(2), KeyError: never()}
    for on in (rules, dict(reversed(rules.items()))):
        policy = exponential(on=on)
        assert [policy.rule_for(error) for error in (KeyError(), IndexError(), OSError())] == [
            never(),
            fixed(2),
            fixed(1),
        ]
    assert exponential(on={KeyError: never()}).rule_for(OSError()) is None


def test_a_rule_ends_the_attempts_only_if_it_names_them() -> None:
    assert not never().allows(1)
    assert fixed(60).allows(MAX_ATTEMPTS)
    assert [fixed(60, attempts=2).allows(failures) for failures in (1, 2)] == [True, False]


@pytest.mark.parametrize("on", [{"KeyError": never()}, {int: never()}, {KeyError: 60}, {KeyError(): never()}])
def test_rules_that_make_no_sense_are_refused(on: Any) -> None:
    with pytest.raises(ConfigurationError):
        exponential(on=on)


def test_a_rule_has_no_rules() -> None:
    with pytest.raises(ConfigurationError, match="without on"):
        fixed(on={KeyError: fixed(1, on={LookupError: never()})})


# What a failure asks for.


class Asking(Exception):
    def __init__(self, retry_after: Any) -> None:
        self.retry_after = retry_after


def answered(**headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://localhost")
    response = httpx.Response(
        429, headers={"Retry-After": headers["after"]} if headers else {}, request=request
    )
    return httpx.HTTPStatusError("slow down", request=request, response=response)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (Asking(7), 7),
        (Asking(1.5), 1.5),
        (Asking(timedelta(minutes=1)), 60),
        (Asking("9"), 9),
        (Asking(-5), 0),
        (Asking(math.inf), MAX_DELAY),
        (RetryLater(12), 12),
        (answered(after="30"), 30),
        (answered(after="99999999999"), MAX_DELAY),
    ],
)
def test_an_exception_may_ask_for_a_wait(error: Exception, wait: float) -> None:
    assert asked_wait(error) == wait


@pytest.mark.parametrize(
    "asking",
    [
        Asking,
        lambda when: Asking(when.replace(tzinfo=None)),
        RetryLater,
        lambda when: Asking(format_datetime(when, usegmt=True)),
        lambda when: answered(after=format_datetime(when, usegmt=True)),
    ],
)
def test_it_may_ask_for_a_time(asking: Callable[[datetime], Exception]) -> None:
    assert 3000 < (asked_wait(asking(soon(3600))) or 0) <= 3600


@pytest.mark.parametrize(
    "error", [ValueError(), Asking("soon"), Asking(math.nan), Asking(True), Asking([]), answered()]
)
def test_what_does_not_ask_plainly_is_not_heard(error: Exception) -> None:
    assert asked_wait(error) is None


# A task's own backoff, and what becomes of ended tasks.


@pytest.mark.parametrize(
    ("given", "waits"),
    [
        ({"type": "exponential", "delay": 2000, "jitter": "none"}, [2, 4, 8]),
        ({"type": "fixed", "delay": 1500}, [1.5, 1.5, 1.5]),
        ("exponential", [2, 4, 8]),
        ("fixed", [1, 1, 1]),
        (250, [0.25, 0.25, 0.25]),
    ],
)
def test_a_backoff_waits_as_it_says(given: Any, waits: list[float]) -> None:
    policy = own_backoff(parse_backoff(given) or "")
    assert [policy.delay(failures).total_seconds() for failures in (1, 2, 3)] == waits


def test_a_backoff_has_full_jitter_unless_it_says_otherwise() -> None:
    policy = own_backoff(parse_backoff({"type": "exponential", "delay": 1000}) or "")
    assert len({policy.delay(3) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    "given",
    [
        {"type": "linear", "delay": 1},
        {"type": "fixed"},
        {"type": "fixed", "delay": -1},
        {"type": "fixed", "delay": math.nan},
        {"type": "fixed", "delay": 10**400},
        {"type": "fixed", "delay": "5"},
        {"type": "fixed", "delay": 5, "jitter": "full"},
        {"type": "exponential", "delay": 5, "jitter": "half"},
        {"type": "exponential", "delay": 10**12},
        {"type": "exponential", "delay": 5, "more": 1},
        "sometimes",
        [5],
        True,
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_backoff(given)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (None, {}),
        (False, {}),
        (True, {"age": 0}),
        (100, {"count": 100}),
        ({"age": 60}, {"age": 60}),
        ({"age": 60, "count": 5}, {"age": 60, "count": 5}),
    ],
)
def test_a_removal_is_an_age_a_count_or_both(given: Any, rule: dict[str, float]) -> None:
    assert parse_removal(given) == rule


@pytest.mark.parametrize("given", [-1, 1.5, "all", {}, {"age": -1}, {"count": True}, {"days": 1}, [1]])
def test_a_removal_that_makes_no_sense_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_removal(given)
    with pytest.raises(ConfigurationError, match="keep dead"):
        Keep(dead=given)
