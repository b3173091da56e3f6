"""Limits of concurrency and rate: never one more, whoever releases and whatever dies."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capataz import ratelimit
from capataz.errors import ConfigurationError, InvalidSubmission
from capataz.flow import Fairness, Limit, declared
from capataz.lifecycle.dispatch import EPOCH_KEY, Dispatcher
from capataz.lifecycle.overriding import flows, override, overrides
from capataz.lifecycle.waiting_for import obstacle
from capataz.models import Event, Queue, Rate, Task, Worker
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, announced, now, tasks, together

Hire = Callable[..., StagedWorker]
Turn = Callable[[], int]


@pytest.fixture(autouse=True)
def _an_empty_broker_that_knows_its_epoch(broker: redis.Redis) -> None:
    broker.set(EPOCH_KEY, "of this test")


@pytest.fixture
def limit(transactional_db: None) -> Callable[..., None]:
    """Override the limits of a type."""

    def set_limits(task_type: str, *limits: dict[str, Any], **more: Any) -> None:
        override(task_type, {"limits": list(limits), **more}, by="test")

    return set_limits


def in_flight(task_type: str = "demo.echo") -> int:
    return Task.objects.filter(type=task_type, released_at__isnull=False).count()


def end_all(worker: StagedWorker, some: list[Task]) -> None:
    """Whatever of these is released is claimed and ends well."""
    free = [task for task in some if now(task).released_at is not None and now(task).run is None]
    worker.end(worker.claim(*free))


# Declarations.


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"rate": "fast"}, "100/m"),
        ({"rate": "0/s"}, "100/m"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"concurrency": 1, "per": "tenant"}, "payload.tenant"),
        ({"concurrency": 1, "burst": 2}, "belong to a rate"),
        ({}, "needs concurrency or rate"),
        ({"rate": "1/s", "weight": 5}, "at most burst"),
        ({"rate": "1/s", "weight": "payload.size"}, "needs burst"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_what_would(given: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Limit(**given)


def test_limits_by_two_different_keys_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="one place"):
        declared("x", Limit(concurrency=1, per="payload.a"), Fairness(per="payload.b"))


# Concurrency.


def test_no_more_tasks_are_in_flight_than_the_limit(hire: Hire, turn: Turn, limit: Any) -> None:
    worker = hire(slots=20)
    limit("demo.echo", {"concurrency": 3})
    some = tasks(10)
    for _ in range(3):
        turn()
    assert in_flight() == 3
    grants = worker.claim(*[task for task in some if now(task).released_at is not None])
    turn()
    assert in_flight() == 3
    worker.end(grants[:1])
    turn()
    assert in_flight() == 3
    assert Task.objects.filter(state=State.SUCCEEDED).count() == 1


def test_each_key_has_slots_of_its_own(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=20)
    limit("demo.echo", {"concurrency": 2, "per": "payload.message"}, {"concurrency": 5})
    for tenant in ("a", "b", "c"):
        tasks(5, data={"message": tenant})
    turn()
    turn()
    by_tenant = [
        Task.objects.filter(payload__message=tenant, released_at__isnull=False).count() for tenant in "abc"
    ]
    assert sum(by_tenant) == 5
    assert max(by_tenant) == 2


def test_what_was_released_before_the_limit_came_counts(hire: Hire, turn: Turn, limit: Any) -> None:
    worker = hire(slots=2)
    some = tasks(10, data={"message": "a"})
    turn()
    assert in_flight() == 4
    limit("demo.echo", {"concurrency": 3, "per": "payload.message"})
    for _ in range(3):
        turn()
    assert in_flight() == 4
    grants = worker.claim(*some[:4])
    worker.end(grants[:1])
    turn()
    assert in_flight() == 3
    worker.end(grants[1:2])
    turn()
    assert in_flight() == 3


def test_a_limit_that_is_lifted_lets_what_waits_in_lanes_go(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=20)
    limit("demo.echo", {"concurrency": 1})
    tasks(8)
    turn()
    turn()
    assert in_flight() == 1
    limit("demo.echo")
    turn()
    assert in_flight() == 8


def test_a_limit_by_another_key_moves_what_waits_to_other_lanes(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=20)
    limit("demo.echo", {"concurrency": 1, "per": "payload.message.a"})
    for number in range(4):
        tasks(1, data={"message": {"a": "same", "b": str(number)}})
    for _ in range(2):
        turn()
    assert in_flight() == 1
    limit("demo.echo", {"concurrency": 1, "per": "payload.message.b"})
    for _ in range(3):
        turn()
    assert in_flight() == 4


def test_others_pass_those_that_wait_for_a_slot(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=2)
    tasks(50, priority=10)
    limit("demo.echo", {"concurrency": 1})
    turn()
    turn()
    others = tasks(4, "demo.sleep", priority=0)
    turn()
    assert in_flight() == 1
    assert any(now(task).released_at for task in others)


def test_priority_and_age_hold_among_limited_and_free_tasks(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=2)
    limit("demo.echo", {"concurrency": 10})
    low = tasks(3, priority=3)
    middle = tasks(2, "demo.sleep", priority=5)
    high = tasks(2, priority=7)
    turn()
    turn()
    assert all(now(task).released_at for task in [*high, *middle])
    assert not any(now(task).released_at for task in low)


def test_limited_tasks_are_announced_one_by_one(
    worker: StagedWorker, turn: Turn, limit: Any, broker: redis.Redis
) -> None:
    Worker.objects.filter(pk=worker.id).update(timings={"demo.echo": [100, 0.001, 0.001]})
    limit("demo.echo", {"concurrency": 3})
    tasks(6)
    turn()
    turn()
    assert [len(message) for message in announced(broker)] == [1, 1, 1]


def test_dispatchers_that_race_on_a_type_in_two_queues_take_no_slot_twice(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], limit: Any
) -> None:
    """A release of the type in one queue may not count while one in the other has not committed."""
    worker = hire(slots=50)
    limit("demo.echo", {"concurrency": 5})
    some = [*tasks(40), *tasks(40, queue="email")]
    Queue.objects.get_or_create(name="default")
    Queue.objects.get_or_create(name="email")
    dispatchers = [new_dispatcher() for _ in range(4)]
    for dispatcher in dispatchers:
        dispatcher.turn()
    most, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.is_set():
            most[0] = max(most[0], in_flight())

    def turns(dispatcher: Dispatcher) -> Callable[[], object]:
        return lambda: [dispatcher.turn() for _ in range(25)] and None

    def work() -> None:
        try:
            while Task.objects.filter(state=State.SUCCEEDED).count() < 60 and not stop.is_set():
                end_all(worker, list(Task.objects.filter(released_at__isnull=False, run__isnull=True)))
                if not Task.objects.filter(state=State.QUEUED).exists():
                    break
                alive = any(thread.name == "turning" for thread in threading.enumerate())
                if not alive and not in_flight():
                    break
        finally:
            stop.set()

    def turning(each: Dispatcher) -> Callable[[], None]:
        def run() -> None:
            threading.current_thread().name = "turning"
            turns(each)()

        return run

    together(*(turning(each) for each in dispatchers), work, sample)
    assert 0 < most[0] <= 5
    assert len(some) == 80


def test_a_dead_worker_keeps_its_slots_until_its_tasks_are_taken_back(
    hire: Hire, turn: Turn, limit: Any, session: psycopg.Connection
) -> None:
    from capataz.lifecycle import recovery

    doomed = hire(slots=5)
    limit("demo.echo", {"concurrency": 2})
    some = tasks(5)
    turn()
    turn()
    doomed.claim(*[task for task in some if now(task).released_at])
    hire(slots=5)
    Worker.objects.filter(pk=doomed.id).update(state="lost")
    turn()
    assert in_flight() == 2
    recovery.recover(session, doomed.id)
    turn()
    turn()
    assert in_flight() == 2


def test_many_that_wait_in_a_full_lane_cost_the_others_nothing(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], limit: Any
) -> None:
    hire(slots=2)
    limit("demo.echo", {"concurrency": 1})
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO capataz_task (id, type, queue, priority, state, payload, lane)"
            " SELECT gen_random_uuid(), 'demo.echo', 'default', 10, 'queued', '{}', 'demo.echo||'"
            " FROM generate_series(1, 50000)"
        )
        cursor.execute("ANALYZE capataz_task")
    dispatcher = new_dispatcher()
    dispatcher.turn()
    others = tasks(2, "demo.sleep")
    dispatcher.turn()
    assert all(now(task).released_at for task in others)
    assert in_flight() == 1
    session = dispatcher._session.connection()
    read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'capataz_task_lanes'"
    session.execute("SELECT pg_stat_force_next_flush()")
    before = session.execute(read).fetchall()
    for _ in range(3):
        dispatcher.turn()
    session.execute("SELECT pg_stat_force_next_flush()")
    after = session.execute(read).fetchall()
    assert after[0][0] - before[0][0] < 500


# Overrides.


def test_an_override_is_told_with_who_and_what_was_before(transactional_db: None) -> None:
    override("demo.echo", {"limits": [{"concurrency": 2}]}, by="ana")
    override("demo.echo", {"limits": [{"concurrency": 3}]}, by="ben")
    override("demo.echo", {}, by="ana")
    override("demo.echo", {}, by="ana")
    told = [event.detail for event in Event.objects.filter(kind="type.overridden").order_by("id")]
    assert [event["by"] for event in told] == ["ana", "ben", "ana"]
    assert (
        told[1]["before"] == {"limits": [{"concurrency": 2, "burst": None, "per": None}]}
        or told[1]["before"]["limits"][0]["concurrency"] == 2
    )
    assert told[1]["after"]["limits"][0]["concurrency"] == 3
    assert overrides() == {}


@pytest.mark.parametrize(
    ("parts", "pointer"),
    [
        ({"limits": [{"rate": "x"}]}, "override/limits/0/rate"),
        ({"limits": [{"concurrency": "5"}]}, "override/limits/0/concurrency"),
        ({"limit": []}, "override/limit"),
        ({"fairness": {"per": "tenant"}}, "override/fairness/per"),
        ([], "override"),
        ({"limits": [{"concurrency": 1, "per": "payload.a"}], "fairness": {"per": "payload.b"}}, "override"),
    ],
)
def test_a_bad_override_names_its_field(transactional_db: None, parts: Any, pointer: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        override("demo.echo", parts)
    assert refused.value.faults[0].pointer == pointer


def test_a_part_that_only_a_newer_version_knows_leaves_a_type_as_declared(
    transactional_db: None, session: psycopg.Connection
) -> None:
    from capataz.models import TypePolicy

    TypePolicy.objects.create(name="demo.echo", override={"of": "tomorrow"})
    assert "demo.echo" not in flows(session)
    assert overrides() == {}


def test_a_waiting_task_names_the_limit_that_it_waits_for(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=20)
    limit("demo.echo", {"concurrency": 1})
    first, second, *_ = tasks(3)
    turn()
    turn()
    assert obstacle(second) == "1 tasks of its type are in flight, the limit is 1"
    assert obstacle(now(first)) is None
    limit("demo.echo", {"rate": "1/h"})
    turn()
    assert "the rate of 1/h of its type is used up until" in (obstacle(tasks(1)[0]) or "")


# Rates.


def test_a_rate_lets_its_burst_go_and_then_one_after_the_other(hire: Hire, turn: Turn, limit: Any) -> None:
    worker = hire(slots=20)
    limit("demo.echo", {"rate": "1/h", "burst": 3})
    some = tasks(10)
    for _ in range(3):
        turn()
    assert in_flight() == 3
    end_all(worker, some)
    turn()
    assert in_flight() == 0
    Rate.objects.update(unused_at=F("unused_at") - timedelta(hours=2))
    turn()
    assert in_flight() == 2


def test_a_weight_from_the_payload_counts_so_often(hire: Hire, turn: Turn, limit: Any) -> None:
    hire(slots=20)
    limit("demo.echo", {"rate": "1/h", "burst": 10, "weight": "payload.message"})
    for size in (4, 5, 3, 1):
        tasks(1, data={"message": size})
    turn()
    turn()
    assert in_flight() == 2  # the third has to wait, and the fourth does not overtake it


def test_what_is_not_claimed_keeps_what_it_has_spent(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], limit: Any
) -> None:
    """Else all that waited for busy workers, and as many more, would start at one moment."""
    worker = hire(slots=20)
    limit("demo.echo", {"rate": "1/h", "burst": 3})
    some = tasks(3)
    dispatcher = new_dispatcher()
    dispatcher.turn()
    dispatcher.turn()
    assert in_flight() == 3
    Rate.objects.update(unused_at=Now() - timedelta(hours=1))
    dispatcher.turn()
    worker.claim(*some)
    tasks(3)
    dispatcher.turn()
    dispatcher.turn()
    assert in_flight() == 3


def test_the_dispatcher_rests_until_the_next_start_of_a_rate_and_no_longer(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], limit: Any
) -> None:
    worker = hire(slots=20)
    limit("demo.echo", {"rate": "5/s"})
    some = tasks(2)
    dispatcher = new_dispatcher()
    for _ in range(2):
        dispatcher.turn()
    end_all(worker, some)
    dispatcher.turn()
    assert 0 < dispatcher._lanes.due - time.monotonic() <= 0.2


@hypothesis_settings(max_examples=30)
@given(
    burst=st.integers(1, 5),
    asked=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 3)), min_size=1, max_size=12),
)
def test_gcra_in_postgresql_does_what_a_model_of_it_does(
    django_db_blocker: Any, burst: int, asked: list[tuple[int, int]]
) -> None:
    with django_db_blocker.unblock():
        _compare(burst, asked)


def _compare(burst: int, asked: list[tuple[int, int]]) -> None:
    Rate.objects.all().delete()
    interval, clock, unused = 1000, 0, 0  # milliseconds, of a rate of 1/s; the model's clock stands still
    for step, wish in asked:
        cost = min(wish, burst)
        clock += step
        Rate.objects.update(unused_at=F("unused_at") - timedelta(milliseconds=step))
        spent = max(unused, clock) + cost * interval
        margin = spent - clock - burst * interval
        if abs(margin) < 200:  # the real clock goes on a little
            return
        answer = ratelimit.allow("model", rate="1/s", burst=burst, cost=cost)
        assert answer.allowed == (margin <= 0)
        if answer:
            unused = spent
        else:
            assert 0 <= margin / 1000 - answer.retry_after < 0.5
            assert not answer


def test_callers_at_once_get_no_more_than_the_rate(transactional_db: None) -> None:
    def ask() -> bool:
        return bool(ratelimit.allow("at once", "ana", rate="1/h", burst=5))

    assert sum(together(*[ask] * 16)) == 5
    assert ratelimit.allow("at once", "ben", rate="1/h", burst=5)


def test_a_rate_that_is_unused_is_forgotten(turn: Turn, worker: StagedWorker) -> None:
    ratelimit.allow("short", rate="1000/s")
    ratelimit.allow("long", rate="1/h")
    time.sleep(0.01)
    turn()
    assert list(Rate.objects.values_list("name", flat=True)) == ["own long"]


@pytest.mark.parametrize("given", [{"rate": "x"}, {"rate": "1/s", "cost": 2}, {"rate": "1/s", "burst": 0}])
def test_a_rate_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ratelimit.allow("x", **given)
