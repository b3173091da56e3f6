"""How long tasks of each type ran lately."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz.worker.timings import SAMPLES, Timings

seconds = st.floats(min_value=0, max_value=3600)


def summary(*ran: float) -> list[float]:
    timings = Timings()
    for each in ran:
        timings.add("demo.echo", each)
    return timings.summary()["demo.echo"]


def test_without_runs_there_is_nothing_to_tell() -> None:
    assert Timings().summary() == {}


def test_types_are_told_apart() -> None:
    timings = Timings()
    timings.add("fast", 0.001)
    timings.add("slow", 2.0)
    assert timings.summary() == {"fast": [1, 0.001, 0.001], "slow": [1, 2.0, 2.0]}


def test_a_rare_long_run_shows_in_the_95th_percentile() -> None:
    """Nine in ten take 1 ms and one takes 1 s: the mean and a median would promise too much."""
    count, mean, p95 = summary(*([0.001] * 90 + [1.0] * 10))
    assert (count, p95) == (100, 1.0)
    assert mean == pytest.approx(0.1009)


def test_one_outlier_in_a_hundred_does_not() -> None:
    assert summary(*([0.001] * 99 + [1.0]))[2] == 0.001


@given(st.lists(seconds, min_size=1, max_size=SAMPLES))
def test_the_percentile_is_a_run_that_at_most_one_in_twenty_exceeded(ran: list[float]) -> None:
    count, mean, p95 = summary(*ran)
    assert count == len(ran)
    assert min(ran) - 1e-6 <= mean <= max(ran) + 1e-6
    assert sum(each > p95 + 1e-6 for each in ran) <= len(ran) / 20


@given(st.lists(seconds, min_size=SAMPLES + 1, max_size=SAMPLES + 50))
def test_only_the_latest_runs_count(ran: list[float]) -> None:
    assert summary(*ran) == summary(*ran[-SAMPLES:])
