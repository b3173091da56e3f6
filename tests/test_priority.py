"""One scale of priority, and the lists in Redis that it leads to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz import priority
from capataz.priority import HIGHEST, LOWEST, NAMES, REDIS_STEPS

priorities = st.integers(LOWEST, HIGHEST)


@given(priorities, priorities)
def test_a_higher_priority_is_never_in_a_less_urgent_list(one: int, other: int) -> None:
    low, high = sorted([one, other])
    assert priority.redis_step(high) <= priority.redis_step(low)


def test_every_list_is_used_and_no_other() -> None:
    used = {priority.redis_step(each) for each in range(LOWEST, HIGHEST + 1)}
    assert used == set(REDIS_STEPS)


def test_no_list_is_shared_by_more_than_two_priorities() -> None:
    steps = [priority.redis_step(each) for each in range(LOWEST, HIGHEST + 1)]
    assert max(steps.count(step) for step in steps) == 2


@given(priorities)
def test_a_number_on_the_scale_means_itself(value: int) -> None:
    assert priority.parse(value) == value


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_understood_whatever_its_case_and_spaces(name: str) -> None:
    assert priority.parse(f" {name.upper()} ") == NAMES[name]


def test_the_names_keep_their_order_in_both_languages() -> None:
    assert NAMES["high"] > NAMES["medium"] > NAMES["low"]
    assert (NAMES["alta"], NAMES["media"], NAMES["baja"]) == (NAMES["high"], NAMES["medium"], NAMES["low"])


@pytest.mark.parametrize("value", [True, False, -1, 11, 5.0, "5", "urgent", "", None, [5], {}, b"high"])
def test_anything_else_is_refused_with_what_is_allowed(value: Any) -> None:
    with pytest.raises(ValueError, match="integer from 0 to 10 or one of high, medium, low"):
        priority.parse(value)


@given(st.one_of(st.integers(), st.text(), st.floats(), st.booleans(), st.none()))
def test_whatever_is_accepted_lies_on_the_scale(value: Any) -> None:
    try:
        parsed = priority.parse(value)
    except ValueError:
        return
    assert LOWEST <= parsed <= HIGHEST
