"""How long a task waits before it is tried again."""

from datetime import timedelta

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from capataz import backoff
from capataz.sql import statement

failure_counts = st.integers(min_value=1, max_value=5000)
seconds = st.floats(min_value=0, max_value=7 * 24 * 3600)


@given(failure_counts, seconds, seconds)
def test_full_jitter_stays_between_zero_and_its_ceiling(failures: int, base: float, cap: float) -> None:
    wait = backoff.full_jitter(failures, base=base, cap=cap)
    ceiling = backoff.exponential_ceiling(failures, base=base, cap=cap)
    assert timedelta() <= wait <= timedelta(seconds=ceiling) + timedelta.resolution


@given(failure_counts, seconds, seconds)
def test_no_ceiling_is_above_the_cap(failures: int, base: float, cap: float) -> None:
    assert 0 <= backoff.exponential_ceiling(failures, base=base, cap=cap) <= cap


@given(failure_counts, seconds, seconds)
def test_a_further_failure_never_shortens_the_ceiling(failures: int, base: float, cap: float) -> None:
    before = backoff.exponential_ceiling(failures, base=base, cap=cap)
    assert backoff.exponential_ceiling(failures + 1, base=base, cap=cap) >= before


def test_the_ceiling_doubles_with_every_failure_up_to_the_cap() -> None:
    ceilings = [backoff.exponential_ceiling(failures, base=2, cap=30) for failures in range(1, 7)]
    assert ceilings == [2, 4, 8, 16, 30, 30]


def test_tasks_that_failed_together_do_not_return_together() -> None:
    waits = {backoff.full_jitter(10, base=2, cap=300) for _ in range(100)}
    assert len(waits) > 90


@pytest.mark.parametrize("failures", [0, -1])
def test_failures_are_counted_from_one(failures: int) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        backoff.full_jitter(failures, base=1, cap=1)


@pytest.mark.django_db
@pytest.mark.parametrize(("losses", "seconds"), [*enumerate([0, 2, 4, 8, 16, 32, 60, 60], start=1)])
def test_the_first_lost_worker_costs_no_wait_and_the_later_ones_more_and_more(
    losses: int, seconds: int
) -> None:
    """Runs the statement itself on a task that has lost all but the last of these workers."""
    running = "(gen_random_uuid(), 'demo.echo', 'default', 5, 'running', '{}', 1, 7, now(), now(), %s)"
    columns = (
        "id, type, queue, priority, state, payload, run, worker_id, released_at, started_at, worker_losses"
    )
    parameters = {"worker": 7, "limit": 100, "base": backoff.LOSS_BASE, "cap": backoff.LOSS_CAP}
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO capataz_task ({columns}) VALUES {running}", [losses - 1])
        cursor.execute(statement("recover"), parameters)
        cursor.execute("SELECT state, coalesce(run_at - now(), interval '0') FROM capataz_task")
        [(state, wait)] = cursor.fetchall()
    assert wait == timedelta(seconds=seconds)
    assert state == ("queued" if losses == 1 else "retrying")
