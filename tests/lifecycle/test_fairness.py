"""Fairness: one key's flood does not delay the others, and weights say who has how many turns."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from capataz.lifecycle.dispatch import EPOCH_KEY, Dispatcher
from capataz.lifecycle.lanes import Allowances, Candidate, Turns, choose
from capataz.lifecycle.overriding import override
from capataz.models import Task
from tests.lifecycle.stage import StagedWorker, tasks

EARLY = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _an_empty_broker_that_knows_its_epoch(broker: redis.Redis) -> None:
    broker.set(EPOCH_KEY, "of this test")


def waiting(lane: str | None, number: int, **about: Any) -> Candidate:
    about = {"priority": 5, "created_at": EARLY + timedelta(seconds=number), **about}
    place = UUID(int=hash((lane, number)) & (2**128 - 1))
    return Candidate(id=place, type="t" if lane else "plain", lane=lane, **about)


def pick(some: list[Candidate], room: int, turns: Turns, **more: Any) -> list[Candidate]:
    given: dict[str, Any] = {"aged": 0, "weight": lambda lane: 1.0, "allowances": Allowances(), **more}
    return choose(some, room, share=lambda task_type: 1.0, turns=turns, **given)


def test_ten_tasks_of_one_start_beside_a_flood_of_another(
    hire: Callable[..., StagedWorker], new_dispatcher: Callable[[], Dispatcher]
) -> None:
    worker = hire(slots=2)
    override("demo.echo", {"fairness": {"per": "payload.message"}})
    tasks(300, data={"message": "flood"})
    dispatcher = new_dispatcher()
    dispatcher.turn()
    dispatcher.turn()
    few = tasks(10, data={"message": "few"})
    started: list[str] = []
    while len(started) < 30:
        free = Task.objects.filter(released_at__isnull=False, run__isnull=True).order_by("released_at")[:2]
        started += [task.payload["message"] for task in free]
        worker.end(worker.claim(*free))
        dispatcher.turn()
    # The window may have been full of the flood; after that they take turns.
    assert Counter(started[:26])["few"] == len(few)


def test_a_weight_is_so_many_turns() -> None:
    turns = Turns()
    some = [waiting(lane, number) for lane in ("t|k|gold", "t|k|tin") for number in range(100)]
    chosen = pick(some, 40, turns, weight=lambda lane: 3.0 if "gold" in lane else 1.0)
    assert Counter(each.lane for each in chosen) == {"t|k|gold": 30, "t|k|tin": 10}


def test_turns_go_on_from_one_look_to_the_next() -> None:
    turns = Turns()
    some = [waiting(lane, number) for lane in ("t|k|a", "t|k|b", "t|k|c") for number in range(10)]
    chosen = [pick(some, 1, turns)[0].lane for _ in range(6)]
    assert Counter(chosen) == {"t|k|a": 2, "t|k|b": 2, "t|k|c": 2}


def test_who_was_away_has_saved_nothing_up() -> None:
    turns = Turns()
    flood = [waiting("t|k|a", number) for number in range(100)]
    pick(flood, 50, turns)
    late = [waiting("t|k|b", number) for number in range(100, 200)]
    assert Counter(each.lane for each in pick(flood + late, 20, turns))["t|k|b"] in (10, 11)


def test_what_is_remembered_of_turns_does_not_grow_without_bound() -> None:
    turns = Turns()
    for number in range(30_000):
        turns.take("t", f"t|k|{number}", 1.0)
    assert len(turns._next) <= 10_001


def test_between_types_priority_and_age_decide() -> None:
    some = [waiting("t|k|a", 5, priority=7), waiting("t|k|b", 1, priority=1), waiting(None, 3)]
    assert [each.lane for each in pick(some, 3, Turns())] == ["t|k|a", None, "t|k|b"]


@given(
    lanes=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    room=st.integers(1, 30),
    total=st.integers(0, 20),
    each=st.integers(0, 6),
)
def test_no_allowance_is_exceeded_and_no_room_is_left_that_somebody_could_have(
    lanes: list[int], room: int, total: int, each: int
) -> None:
    some = [waiting(f"t|k|{lane}", number) for lane, count in enumerate(lanes) for number in range(count)]
    allowances = Allowances()
    allowances.add("t", None, total)
    for lane in range(len(lanes)):
        allowances.add("t", f"t|k|{lane}", each)
    chosen = Counter(one.lane for one in pick(some, room, Turns(), allowances=allowances))
    able = sum(min(count, each) for count in lanes)
    assert sum(chosen.values()) == min(room, total, able)
    assert max(chosen.values(), default=0) <= each


def test_thousands_of_keys_all_have_their_turn(
    hire: Callable[..., StagedWorker], new_dispatcher: Callable[[], Dispatcher]
) -> None:
    worker = hire(slots=100)
    override("demo.echo", {"limits": [{"concurrency": 1, "per": "payload.message"}]})
    for number in range(600):
        tasks(1, data={"message": number})
    dispatcher = new_dispatcher()
    for _ in range(20):
        dispatcher.turn()
        free = list(Task.objects.filter(released_at__isnull=False, run__isnull=True))
        worker.end(worker.claim(*free))
    assert Task.objects.filter(finished_at__isnull=True).count() == 0
