"""The states of a task: the moves between them, and the words that clients see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz.lifecycle.retry import RETRYABLE
from capataz.states import COMES_FROM, FINAL, HELD, UNFINISHED, WIRE, State, states_of

STARTS = {State.SCHEDULED, State.BLOCKED, State.QUEUED}


def moves_out_of(state: State) -> set[State]:
    return {to for to, origins in COMES_FROM.items() if state in origins}


def reachable_from(states: set[State]) -> set[State]:
    known = set(states)
    while found := {to for state in known for to in moves_out_of(state)} - known:
        known |= found
    return known


def test_every_state_can_be_reached_from_a_new_task() -> None:
    assert reachable_from(STARTS) == set(State)


def test_a_task_waits_for_a_time_only_before_its_turn_or_if_it_is_snoozed() -> None:
    assert COMES_FROM[State.SCHEDULED] == HELD | {State.QUEUED, State.BLOCKED}


def test_only_what_has_failed_comes_back_to_its_parents() -> None:
    assert COMES_FROM[State.BLOCKED] == RETRYABLE


def test_the_moves_into_every_state_are_declared() -> None:
    assert COMES_FROM.keys() == set(State)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_final_state_has_no_way_out_but_a_persons_retry(state: State) -> None:
    discarded = {State.CANCELLED} if state is State.DEAD else set()
    assert moves_out_of(state) == ({State.QUEUED, State.BLOCKED} | discarded if state in RETRYABLE else set())


def test_a_success_is_for_ever() -> None:
    assert moves_out_of(State.SUCCEEDED) == set()


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_every_unfinished_task_can_still_end(state: State) -> None:
    assert reachable_from({state}) & FINAL


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_every_unfinished_task_can_be_cancelled(state: State) -> None:
    assert state in COMES_FROM[State.CANCELLED]


def test_only_a_held_task_can_succeed_or_die() -> None:
    assert COMES_FROM[State.SUCCEEDED] == COMES_FROM[State.DEAD] == HELD


def test_a_task_runs_only_after_it_was_claimed_and_is_claimed_only_when_queued() -> None:
    assert COMES_FROM[State.RUNNING] == {State.CLAIMED}
    assert COMES_FROM[State.CLAIMED] == {State.QUEUED}


def test_what_has_started_cannot_expire() -> None:
    assert COMES_FROM[State.EXPIRED].isdisjoint(HELD)


def test_final_and_unfinished_share_out_all_states() -> None:
    assert set(State) == FINAL | UNFINISHED
    assert FINAL.isdisjoint(UNFINISHED)


def test_every_state_has_a_word_on_the_wire() -> None:
    assert WIRE.keys() == set(State)


@given(st.sampled_from(State))
def test_a_wire_status_stands_for_all_states_that_show_it(state: State) -> None:
    meant = states_of(WIRE[state])
    assert state in meant or WIRE[state] in State.values
    assert {WIRE[each] for each in meant} == {WIRE[state]}


@given(st.sampled_from(State))
def test_a_states_own_name_stands_for_itself_alone(state: State) -> None:
    assert states_of(state.value) == [state]


def test_pending_is_everything_that_waits_or_is_claimed() -> None:
    waiting = {State.SCHEDULED, State.BLOCKED, State.QUEUED, State.CLAIMED, State.RETRYING}
    assert set(states_of("pending")) == waiting


@pytest.mark.parametrize("alias", ["inProgress", "in_progress", "active", "running"])
def test_every_name_of_in_progress_means_running(alias: str) -> None:
    assert states_of(alias) == [State.RUNNING]


@given(st.text().filter(lambda text: text not in {*WIRE.values(), *State.values, "in_progress", "active"}))
def test_any_other_word_is_refused_with_a_list_of_what_is_allowed(word: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*completed.*in_progress.*queued"):
        states_of(word)
