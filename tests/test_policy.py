"""What a handler may declare about its retries."""

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz.errors import ConfigurationError
from capataz.policy import MAX_ATTEMPTS, MAX_DELAY, Retry, exponential, fixed, never

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
