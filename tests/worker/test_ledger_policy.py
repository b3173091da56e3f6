"""What the end of a run means for its task: the table from endings to states."""

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.conf import settings
from psycopg import errors as pg

from capataz import handlers
from capataz.lifecycle.execution import Finish
from capataz.models import Outcome
from capataz.policy import parse_backoff
from capataz.states import COMES_FROM, HELD, State
from capataz.worker.holding import Bundle, Ended, Ending, Held
from capataz.worker.ledger import _after, _is_row_fault, cannot_be_stored, to_finish

NOW = 1000.0


def held(**about: Any) -> Held:
    bundle = Bundle(serial=1, type="demo.echo", acknowledge=lambda: None)
    facts = {
        "id": uuid.UUID(int=1),
        "run": 7,
        "type": "demo.echo",
        "handler": handlers.find("demo.fail"),  # waits 0.2 s after every failure
        "payload": "{}",
        "attempts": 0,
        "max_attempts": 3,
        "losses": 0,
        "worker_losses": 0,
        "soft_time_limit": None,
        "time_limit": 300.0,
        "bundle": bundle,
        "index": 0,
        "started": NOW - 5,
    }
    return Held(**{**facts, **about})


def finish_of(ending: Ending, *, of: Held | None = None, **about: Any) -> Finish:
    return to_finish(Ended(of or held(), ending, NOW - 2, **about), NOW)


@pytest.mark.parametrize(
    ("ending", "facts", "state", "outcome"),
    [
        (Ending.SUCCEEDED, {}, State.SUCCEEDED, Outcome.SUCCEEDED),
        (Ending.SUCCEEDED, {"attempts": 9, "losses": 9}, State.SUCCEEDED, Outcome.SUCCEEDED),
        (Ending.FAILED, {}, State.RETRYING, Outcome.FAILED),
        (Ending.FAILED, {"attempts": 1}, State.RETRYING, Outcome.FAILED),
        (Ending.FAILED, {"attempts": 2}, State.DEAD, Outcome.FAILED),
        (Ending.FAILED, {"max_attempts": 1}, State.DEAD, Outcome.FAILED),
        (Ending.LOST, {}, State.QUEUED, Outcome.LOST),
        (Ending.LOST, {"attempts": 2}, State.QUEUED, Outcome.LOST),
        (Ending.LOST, {"losses": settings.MAX_LOSSES - 2}, State.QUEUED, Outcome.LOST),
        (Ending.LOST, {"losses": settings.MAX_LOSSES - 1}, State.DEAD, Outcome.LOST),
        (Ending.LOST, {"worker_losses": 9}, State.QUEUED, Outcome.LOST),
        (Ending.CANCELLED, {}, State.CANCELLED, Outcome.CANCELLED),
        (Ending.CANCELLED, {"started": None}, State.CANCELLED, Outcome.CANCELLED),
        (Ending.GIVEN_BACK, {}, State.QUEUED, Outcome.GIVEN_BACK),
        (Ending.GIVEN_BACK, {"attempts": 2, "losses": 2}, State.QUEUED, Outcome.GIVEN_BACK),
        (Ending.SNOOZED, {"attempts": 2}, State.SCHEDULED, Outcome.SNOOZED),
        (Ending.SNOOZED, {"snoozes": settings.MAX_SNOOZES - 1}, State.SCHEDULED, Outcome.SNOOZED),
        (Ending.SNOOZED, {"snoozes": settings.MAX_SNOOZES}, State.DEAD, Outcome.FAILED),
    ],
)
def test_every_ending_leads_to_its_state(
    ending: Ending, facts: dict[str, Any], state: State, outcome: Outcome
) -> None:
    made = finish_of(ending, of=held(**facts))
    assert (made.state, made.outcome) == (state, outcome)


@pytest.mark.parametrize("ending", Ending)
def test_no_ending_leads_where_a_held_task_may_not_go(ending: Ending) -> None:
    assert COMES_FROM[finish_of(ending).state] & HELD


def test_a_failure_that_is_not_worth_repeating_is_dead_at_once() -> None:
    assert finish_of(Ending.FAILED, retryable=False).state == State.DEAD


def test_a_failure_waits_as_its_handler_says() -> None:
    assert finish_of(Ending.FAILED).delay == 0.2


@pytest.mark.parametrize("ending", [each for each in Ending if each is not Ending.FAILED])
def test_nothing_else_waits(ending: Ending) -> None:
    assert finish_of(ending).delay == 0


def test_a_quarantined_task_says_after_how_many_deaths_and_how_the_last_was() -> None:
    made = finish_of(Ending.LOST, of=held(losses=settings.MAX_LOSSES - 1), error="its process died: SIGSEGV")
    assert (
        made.error
        == f"quarantined after {settings.MAX_LOSSES} deaths of its process; its process died: SIGSEGV"
    )


def test_a_success_keeps_its_result_and_no_error() -> None:
    made = finish_of(Ending.SUCCEEDED, result="42", error="leftover")
    assert (made.result, made.error) == ("42", None)


@pytest.mark.parametrize("ending", [Ending.FAILED, Ending.LOST, Ending.CANCELLED])
def test_every_other_end_says_why(ending: Ending) -> None:
    assert "boom" in str(finish_of(ending, error="boom").error)


def test_times_are_told_as_seconds_before_now() -> None:
    made = finish_of(Ending.SUCCEEDED)
    assert (made.started_ago, made.ended_ago) == (5.0, 2.0)


def test_what_never_started_has_no_start() -> None:
    assert finish_of(Ending.GIVEN_BACK, of=held(started=None)).started_ago is None


def test_a_clock_that_seems_to_run_backwards_makes_no_negative_times() -> None:
    made = to_finish(Ended(held(started=NOW + 1), Ending.SUCCEEDED, NOW + 2), NOW)
    assert (made.started_ago, made.ended_ago) == (0.0, 0.0)


def test_a_counted_give_back_stays_counted() -> None:
    assert finish_of(Ending.GIVEN_BACK, counted=True).counted
    assert not finish_of(Ending.GIVEN_BACK).counted


def test_the_run_that_ends_is_the_run_that_was_granted() -> None:
    made = finish_of(Ending.SUCCEEDED, of=held(run=99))
    assert (made.id, made.run) == (uuid.UUID(int=1), 99)


def test_a_result_that_postgresql_refuses_becomes_a_failed_attempt() -> None:
    ended = Ended(held(), Ending.SUCCEEDED, NOW - 2, result='"\\u0000"', traceback="x")
    made = to_finish(cannot_be_stored(ended), NOW)
    assert (made.state, made.outcome, made.result, made.traceback) == (
        State.RETRYING,
        Outcome.FAILED,
        None,
        None,
    )
    assert "cannot be stored" in str(made.error)


def test_an_outcome_that_cannot_be_stored_at_the_last_attempt_is_a_dead_letter() -> None:
    ended = Ended(held(attempts=2), Ending.SUCCEEDED, NOW)
    assert to_finish(cannot_be_stored(ended), NOW).state == State.DEAD


@pytest.mark.parametrize(
    "error",
    [
        pg.UntranslatableCharacter(),  # 22
        pg.NotNullViolation(),  # 23
        pg.ProgramLimitExceeded(),  # 54
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ],
)
def test_a_value_that_cannot_be_stored_splits_its_batch(error: Exception) -> None:
    assert _is_row_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        pg.DeadlockDetected(),
        pg.SerializationFailure(),
        pg.LockNotAvailable(),
        pg.AdminShutdown(),
        psycopg.OperationalError("the connection is lost"),
    ],
)
def test_a_fault_of_the_moment_repeats_the_cycle(error: Exception) -> None:
    assert not _is_row_fault(error)


def test_a_message_for_several_bundles_is_acknowledged_after_the_last() -> None:
    acknowledged: list[bool] = []
    done: Callable[[], None] = _after(3, lambda: acknowledged.append(True))
    done()
    done()
    assert acknowledged == []
    done()
    assert acknowledged == [True]


def test_starts_count_every_start_and_attempts_only_failures() -> None:
    assert held(attempts=1, losses=2, worker_losses=3).starts == 7


def test_a_tasks_own_backoff_goes_before_its_handlers_and_what_the_failure_asks_for_before_both() -> None:
    own = parse_backoff({"type": "exponential", "delay": 2000, "jitter": "none"})
    waits = [
        finish_of(Ending.FAILED, of=held(backoff=own, attempts=n, max_attempts=9)).delay for n in range(3)
    ]
    assert waits == [2, 4, 8]
    assert finish_of(Ending.FAILED, of=held(backoff=own), delay=7.5).delay == 7.5
    assert finish_of(Ending.FAILED, delay=0.0).delay == 0.0


def test_a_snoozed_task_waits_as_long_as_was_asked_and_says_why() -> None:
    made = finish_of(Ending.SNOOZED, delay=30.0, error="snoozed for 30 s: not there yet")
    assert (made.delay, made.error) == (30.0, "snoozed for 30 s: not there yet")
