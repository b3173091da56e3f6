"""Dispatch: what is released, when, in which order, and what becomes of lost messages."""

import math
import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.conf import settings as configured
from django.db.models import F
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capataz import pointer, priority
from capataz.database import database_now
from capataz.lifecycle import pausing
from capataz.lifecycle.crew import ENOUGH_SAMPLES, Crew, assemble
from capataz.lifecycle.crew import present as crews_present
from capataz.lifecycle.dispatch import BUNDLE_BYTES, EPOCH_KEY, Dispatcher, Released, bundles
from capataz.models import Outcome, Queue, Task, Worker
from capataz.states import State
from tests import embedded_servers
from tests.lifecycle.stage import (
    StagedWorker,
    announced,
    announced_ids,
    kinds,
    now,
    states,
    tasks,
    together,
)

Hire = Callable[..., StagedWorker]
Turn = Callable[[], int]


@pytest.fixture(autouse=True)
def _an_empty_broker_that_knows_its_epoch(broker: redis.Redis) -> None:
    broker.set(EPOCH_KEY, "of this test")


def ids_of(some: list[Task]) -> list[uuid.UUID]:
    return [task.pk for task in some]


def released(some: list[Task]) -> list[Task]:
    return [task for task in some if now(task).released_at is not None]


def let_time_pass(seconds: float) -> None:
    """As if everything that is released had been released so much earlier."""
    ago = timedelta(seconds=seconds)
    waiting = Task.objects.filter(released_at__isnull=False)
    waiting.update(verify_at=F("verify_at") - ago, released_at=F("released_at") - ago)


def runs_fast(worker: StagedWorker, *types: str, seconds: float = 0.001) -> None:
    timings = {each: [ENOUGH_SAMPLES, seconds, seconds] for each in types}
    Worker.objects.filter(pk=worker.id).update(timings=timings)


def is_waited_for(connection: Any, pid: int) -> bool:
    """Whether some session waits for a lock that this one holds."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    return bool(connection.execute(query, [pid]).fetchone()[0])


# The window.


def test_a_queue_releases_its_window_and_no_more(hire: Hire, turn: Turn, broker: redis.Redis) -> None:
    hire(slots=2)
    waiting = tasks(20)
    turn()
    turn()
    assert released(waiting) == waiting[: int(2 * configured.WINDOW)]
    assert announced_ids(broker) == ids_of(released(waiting))


def test_a_claimed_task_makes_room_for_the_next(worker: StagedWorker, turn: Turn) -> None:
    waiting = tasks(20)
    turn()
    before = len(released(waiting))
    worker.claim(*waiting[:3])
    turn()
    assert len(released(waiting)) == before + 3


def test_the_slots_of_all_workers_count(hire: Hire, turn: Turn) -> None:
    hire(slots=2)
    hire(slots=3)
    waiting = tasks(20)
    turn()
    assert len(released(waiting)) == 5 * configured.WINDOW


def test_each_queue_has_a_window_of_its_own(hire: Hire, turn: Turn) -> None:
    hire(slots=1)
    here, there = tasks(9), tasks(9, queue="email")
    turn()
    assert len(released(here)) == len(released(there)) == configured.WINDOW


def test_short_tasks_are_released_by_bundles_and_announced_together(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    runs_fast(worker, "demo.echo", seconds=0.01)
    waiting = tasks(100)
    turn()
    assert announced(broker) == [ids_of(waiting[start : start + 10]) for start in (0, 10, 20, 30)]


def test_slow_tasks_beside_short_ones_keep_to_the_window(worker: StagedWorker, turn: Turn) -> None:
    runs_fast(worker, "demo.echo")
    slow = tasks(50, "demo.sleep")
    turn()
    assert len(released(slow)) <= 2 * configured.WINDOW


def test_without_a_worker_nothing_is_released(turn: Turn, broker: redis.Redis) -> None:
    waiting = tasks(3)
    assert turn() == 0
    assert released(waiting) == []
    assert announced(broker) == []


# Order.


def test_a_higher_priority_goes_first_and_then_the_older_one(
    hire: Hire, turn: Turn, broker: redis.Redis
) -> None:
    hire(slots=10)
    low, middle, high = (tasks(3, priority=each) for each in (2, 5, 9))
    turn()
    assert announced_ids(broker) == ids_of([*high, *middle, *low])


def test_what_does_not_fit_into_the_window_is_the_least_urgent(hire: Hire, turn: Turn) -> None:
    hire(slots=1)
    low, high = tasks(5, priority=0), tasks(2, priority=10)
    turn()
    assert (len(released(low)), len(released(high))) == (0, 2)


def test_an_urgent_task_overtakes_what_is_released_already(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    tasks(2)
    turn()
    [urgent] = tasks(1, priority=10)
    turn()
    assert announced_ids(broker)[0] == urgent.pk


# What is held back.


def test_a_paused_queue_releases_nothing(worker: StagedWorker, turn: Turn, queue: Queue) -> None:
    pausing.pause(queue)
    waiting, other = tasks(3), tasks(3, queue="email")
    turn()
    assert (released(waiting), released(other)) == ([], other)


def test_a_resumed_queue_releases_again(worker: StagedWorker, turn: Turn, queue: Queue) -> None:
    pausing.pause(queue)
    waiting = tasks(3)
    turn()
    pausing.resume(queue)
    turn()
    assert released(waiting) == waiting


def test_a_release_that_races_with_a_pause_releases_nothing(
    worker: StagedWorker, new_dispatcher: Callable[[], Dispatcher], queue: Queue
) -> None:
    """The dispatcher has seen the queue open, and comes to its release after the pause."""
    waiting = tasks(3)
    dispatcher = new_dispatcher()
    dispatcher.turn()
    pausing.pause(queue)
    assert dispatcher._release(dispatcher._session.connection(), queue.name) == []
    assert released(waiting) == []


def test_a_pause_waits_for_the_release_under_way_and_takes_it_back(
    worker: StagedWorker,
    new_dispatcher: Callable[[], Dispatcher],
    queue: Queue,
    eventually: Callable[..., Any],
) -> None:
    waiting, dispatcher = tasks(3), new_dispatcher()
    dispatcher._crew = crews_present(worker.connection)
    releasing = dispatcher._session.connection()

    def release_slowly() -> None:
        with releasing.transaction():
            assert len(dispatcher._release(releasing, queue.name)) == 3
            eventually(lambda: is_waited_for(worker.connection, releasing.info.backend_pid))

    together(release_slowly, lambda: pausing.pause(queue))
    assert released(waiting) == []


def test_a_type_that_no_live_worker_knows_waits_visibly(hire: Hire, turn: Turn) -> None:
    hire(types=["demo.sleep"])
    unknown, known = tasks(1), tasks(1, "demo.sleep")
    turn()
    assert (released(unknown), released(known)) == ([], known)
    assert states(unknown) == [State.QUEUED]


def test_a_type_whose_last_worker_has_gone_is_withdrawn(hire: Hire, turn: Turn) -> None:
    last = hire()
    waiting = tasks(2)
    turn()
    assert released(waiting) == waiting
    Worker.objects.filter(pk=last.id).update(state="stopped")
    hire(types=["demo.sleep"])
    turn()
    assert released(waiting) == []


def test_a_queue_whose_last_worker_has_gone_is_withdrawn(hire: Hire, turn: Turn) -> None:
    last = hire()
    waiting = tasks(2)
    turn()
    Worker.objects.filter(pk=last.id).update(state="stopped")
    turn()
    assert released(waiting) == []


def test_a_draining_worker_counts_as_none(worker: StagedWorker, turn: Turn) -> None:
    worker.beat(state="draining")
    waiting = tasks(2)
    turn()
    assert released(waiting) == []


def test_a_row_that_somebody_has_locked_is_released_later(
    worker: StagedWorker, turn: Turn, locked: Any
) -> None:
    first, second = tasks(2)
    with locked(first):
        turn()
        assert released([first, second]) == [second]
    turn()
    assert released([first, second]) == [first, second]


# Time.


def test_a_task_is_never_in_redis_before_its_time(
    worker: StagedWorker, turn: Turn, broker: redis.Redis, eventually: Callable[..., Any]
) -> None:
    [task] = tasks(1, delay=0.5)
    eventually(lambda: turn() or announced(broker))
    assert now(task).released_at >= task.run_at


def test_a_task_for_another_day_stays_in_postgresql(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    waiting = tasks(3, run_at=database_now() + timedelta(days=1))
    turn()
    assert states(waiting) == [State.SCHEDULED] * 3
    assert announced(broker) == []


def test_a_due_retry_waits_for_a_worker_like_all_others(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    [task] = tasks(1)
    grants = worker.run(task)
    worker.end(grants, State.RETRYING, Outcome.FAILED, delay=3600)
    turn()
    assert now(task).state == State.RETRYING
    Task.objects.update(run_at=Now())
    due = now(task).run_at
    turn()
    # Its wait counts from then on.
    assert (now(task).state, now(task).run_at) == (State.QUEUED, due)
    assert announced(broker) == [[task.pk]]


def test_a_due_row_that_is_locked_is_moved_at_the_next_look(
    worker: StagedWorker, turn: Turn, locked: Any
) -> None:
    [task] = tasks(1, delay=3600)
    Task.objects.update(run_at=Now())
    with locked(task):
        turn()
        assert now(task).state == State.SCHEDULED
    turn()
    assert now(task).state == State.QUEUED


def test_a_task_past_its_deadline_expires_with_an_event(worker: StagedWorker, turn: Turn) -> None:
    late = tasks(1, expires_at=database_now() - timedelta(seconds=1))
    in_time = tasks(1, expires_at=database_now() + timedelta(hours=1))
    turn()
    assert states([*late, *in_time]) == [State.EXPIRED, State.QUEUED]
    assert kinds(late[0]) == ["task.expired"]


def test_a_released_task_that_nobody_starts_in_time_expires(worker: StagedWorker, turn: Turn) -> None:
    [task] = tasks(1, expires_at=database_now() + timedelta(hours=1))
    turn()
    Task.objects.update(expires_at=Now())
    turn()
    assert (now(task).state, now(task).released_at) == (State.EXPIRED, None)


def test_a_held_task_never_expires(worker: StagedWorker, turn: Turn) -> None:
    [task] = tasks(1)
    worker.run(task)
    Task.objects.update(expires_at=Now())
    turn()
    assert now(task).state == State.RUNNING


# Lost messages.


def test_a_lost_message_is_published_again(worker: StagedWorker, turn: Turn, broker: redis.Redis) -> None:
    waiting = tasks(3)
    turn()
    broker.delete("default", *(pointer.queue_key("default", step) for step in priority.REDIS_STEPS[1:]))
    turn()
    assert announced(broker) == []
    let_time_pass(configured.VERIFY_FIRST)
    turn()
    assert sorted(announced_ids(broker)) == ids_of(waiting)


def test_each_verification_waits_longer_than_the_last_up_to_the_longest(
    worker: StagedWorker, turn: Turn
) -> None:
    [task] = tasks(1)
    turn()
    waits = []
    for _ in range(8):
        redis.Redis.from_url(configured.REDIS_URL).delete(pointer.queue_key("default", 4))
        Task.objects.update(verify_at=Now())
        before = database_now()
        turn()
        waits.append(round((now(task).verify_at - before).total_seconds()))
    assert waits == [6, 12, 24, 48, 60, 60, 60, 60]


def test_a_message_that_waits_for_busy_workers_is_not_copied(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    waiting = tasks(3)
    turn()
    let_time_pass(configured.VERIFY_FIRST)
    turn()
    assert announced_ids(broker) == ids_of(waiting)


def test_a_message_lost_beside_others_is_published_again_after_a_while(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    waiting = tasks(3)
    turn()
    broker.rpop(pointer.queue_key("default", 4))
    let_time_pass(120)
    turn()
    assert set(announced_ids(broker)) == set(ids_of(waiting))


@pytest.mark.parametrize("trouble", ["attempts", "losses", "worker_losses", "orphaned", "given_back"])
def test_among_fast_tasks_one_that_has_had_trouble_goes_alone(
    worker: StagedWorker, turn: Turn, broker: redis.Redis, trouble: str
) -> None:
    runs_fast(worker, "demo.echo")
    waiting = tasks(9)
    Task.objects.filter(pk=waiting[4].pk).update(**{trouble: 1})
    turn()
    sizes = {task_id: len(bundle) for bundle in announced(broker) for task_id in bundle}
    assert sizes[waiting[4].pk] == 1
    assert max(sizes.values()) > 1


def test_what_is_published_again_goes_alone(worker: StagedWorker, turn: Turn, broker: redis.Redis) -> None:
    runs_fast(worker, "demo.echo")
    waiting = tasks(20)
    turn()
    broker.flushdb()
    turn()
    assert sorted(announced(broker)) == [[each] for each in ids_of(waiting)]


def test_a_redis_that_has_forgotten_everything_is_told_everything_at_once(
    hire: Hire, turn: Turn, broker: redis.Redis
) -> None:
    hire(slots=20)
    here, there = tasks(30), tasks(30, queue="email")
    turn()
    broker.flushdb()
    turn()
    assert sorted(announced_ids(broker)) == ids_of(here)
    assert sorted(announced_ids(broker, "email")) == ids_of(there)
    assert broker.get(EPOCH_KEY)


def test_a_publication_notices_by_itself_that_redis_has_forgotten(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], broker: redis.Redis
) -> None:
    hire(slots=20)
    before, after = tasks(3), tasks(3, queue="email")
    dispatcher = new_dispatcher()
    Task.objects.filter(pk__in=ids_of(after)).update(state=State.RETRYING, run_at=Now() + timedelta(hours=1))
    dispatcher.turn()
    broker.flushdb()
    dispatcher._kept_house_at = math.inf  # no look at the epoch but that of the publication itself
    Task.objects.filter(pk__in=ids_of(after)).update(state=State.QUEUED)
    dispatcher.turn()
    assert sorted(announced_ids(broker)) == ids_of(before)
    assert set(announced_ids(broker, "email")) == set(ids_of(after))


def test_a_claimed_task_is_never_published_again(
    worker: StagedWorker, turn: Turn, broker: redis.Redis
) -> None:
    held, waiting = tasks(2)
    turn()
    worker.claim(held)
    broker.flushdb()
    turn()
    assert announced_ids(broker) == [waiting.pk]


def test_an_answer_of_redis_is_waited_for_a_second(new_dispatcher: Callable[[], Dispatcher]) -> None:
    given = new_dispatcher()._redis.connection_pool.connection_kwargs
    assert (given["socket_timeout"], given["socket_connect_timeout"]) == (1, 1)


def test_a_frozen_redis_loses_nothing(
    worker: StagedWorker,
    new_dispatcher: Callable[[], Dispatcher],
    broker: redis.Redis,
    eventually: Callable[..., Any],
) -> None:
    dispatcher, waiting = new_dispatcher(), tasks(3)
    server = embedded_servers.servers().redis.child.pid
    os.kill(server, signal.SIGSTOP)
    try:
        dispatcher.turn()
        dispatcher.turn()
    finally:
        os.kill(server, signal.SIGCONT)
    let_time_pass(configured.VERIFY_FIRST)
    eventually(lambda: dispatcher.turn() or set(announced_ids(broker)) == set(ids_of(waiting)))


def test_a_redis_that_is_down_loses_nothing(
    worker: StagedWorker,
    new_dispatcher: Callable[[], Dispatcher],
    broker: redis.Redis,
    eventually: Callable[..., Any],
) -> None:
    dispatcher, server = new_dispatcher(), embedded_servers.servers().redis
    dispatcher.turn()
    server.stop()
    try:
        waiting = tasks(3)
        [scheduled] = tasks(1, delay=3600)
        Task.objects.filter(pk=scheduled.pk).update(run_at=Now())
        eventually(lambda: dispatcher.turn() or now(scheduled).state == State.QUEUED)
    finally:
        server.start()
        server.wait_until_ready()
    let_time_pass(configured.VERIFY_FIRST)
    everything = {*ids_of(waiting), scheduled.pk}
    eventually(lambda: dispatcher.turn() or set(announced_ids(broker)) == everything)


# Two at once.


def test_two_dispatchers_release_every_task_exactly_once(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], broker: redis.Redis
) -> None:
    hire(slots=200)
    waiting = tasks(300)
    one, other = new_dispatcher(), new_dispatcher()

    def work(dispatcher: Dispatcher) -> int:
        return sum(dispatcher.turn() for _ in range(20))

    assert sum(together(lambda: work(one), lambda: work(other))) == 300
    assert Counter(announced_ids(broker)) == Counter(ids_of(waiting))


def test_a_queue_whose_release_is_under_way_elsewhere_is_left_alone(
    worker: StagedWorker, turn: Turn, session: Any
) -> None:
    from capataz.lifecycle.dispatch import RELEASE_LOCK

    here, there = tasks(2), tasks(2, queue="email")
    with session.transaction():
        session.execute("SELECT pg_advisory_xact_lock(%s, hashtext('default'))", [RELEASE_LOCK])
        turn()
    assert (released(here), released(there)) == ([], there)


# Bundles.

SIZES = st.sampled_from([10, 1000, BUNDLE_BYTES // 3, BUNDLE_BYTES, BUNDLE_BYTES * 2])


@st.composite
def batches(draw: st.DrawFn) -> list[Released]:
    count = draw(st.integers(0, 60))
    made = [
        Released(
            id=uuid.UUID(int=number),
            type=draw(st.sampled_from(["fast", "slow", "unheard of"])),
            queue=draw(st.sampled_from(["here", "there"])),
            priority=draw(st.integers(0, 10)),
            alone=draw(st.booleans()),
            size=draw(SIZES),
        )
        for number in range(count)
    ]
    return sorted(made, key=lambda each: (-each.priority, each.id))


crews = st.builds(
    lambda slots, fast: Crew(
        slots={"here": slots}, seconds={"fast": fast, "slow": 5.0}, samples={"fast": 50, "slow": 50}
    ),
    slots=st.integers(1, 10),
    fast=st.sampled_from([0.0, 0.001, 0.02, 0.06]),
)


@hypothesis_settings(deadline=None)
@given(batches(), crews)
def test_every_task_is_in_exactly_one_message(batch: list[Released], crew: Crew) -> None:
    made = list(bundles(batch, crew))
    assert Counter(each.id for bundle in made for each in bundle) == Counter(each.id for each in batch)
    assert all(made)


@hypothesis_settings(deadline=None)
@given(batches(), crews)
def test_a_message_holds_tasks_of_one_type_for_one_list(batch: list[Released], crew: Crew) -> None:
    for bundle in bundles(batch, crew):
        assert len({(each.type, each.queue, priority.redis_step(each.priority)) for each in bundle}) == 1


@hypothesis_settings(deadline=None)
@given(batches(), crews)
def test_a_message_is_never_longer_or_larger_than_it_may_be(batch: list[Released], crew: Crew) -> None:
    for bundle in bundles(batch, crew):
        assert len(bundle) <= crew.bundle_size(bundle[0].type)
        assert len(bundle) == 1 or sum(each.size for each in bundle) <= BUNDLE_BYTES


@hypothesis_settings(deadline=None)
@given(batches(), crews)
def test_what_has_ended_badly_before_goes_alone(batch: list[Released], crew: Crew) -> None:
    for bundle in bundles(batch, crew):
        assert len(bundle) == 1 or not any(each.alone for each in bundle)


@hypothesis_settings(deadline=None)
@given(batches(), crews)
def test_no_message_overtakes_one_of_a_higher_priority_in_its_list(batch: list[Released], crew: Crew) -> None:
    order: dict[tuple[str, int], list[int]] = {}
    for bundle in bundles(batch, crew):
        step = priority.redis_step(bundle[0].priority)
        order.setdefault((bundle[0].queue, step), []).extend(each.priority for each in bundle)
    assert all(each == sorted(each, reverse=True) for each in order.values())


@hypothesis_settings(deadline=None)
@given(batches(), crews)
def test_tasks_of_one_type_and_priority_keep_their_age_order(batch: list[Released], crew: Crew) -> None:
    order: dict[tuple[str, str, int], list[uuid.UUID]] = {}
    for bundle in bundles([each for each in batch if not each.alone], crew):
        for each in bundle:
            order.setdefault((each.queue, each.type, each.priority), []).append(each.id)
    assert all(each == sorted(each) for each in order.values())


def test_a_handful_of_tasks_is_spread_over_the_slots() -> None:
    crew = Crew(slots={"here": 4}, seconds={"fast": 0.001}, samples={"fast": 50})
    batch = [Released(uuid.UUID(int=n), "fast", "here", 5, False, 10) for n in range(8)]
    assert [len(bundle) for bundle in bundles(batch, crew)] == [2, 2, 2, 2]


def test_a_type_that_nobody_has_timed_goes_one_by_one() -> None:
    crew = Crew(slots={"here": 1}, seconds={"new": 0.001}, samples={"new": ENOUGH_SAMPLES - 1})
    batch = [Released(uuid.UUID(int=n), "new", "here", 5, False, 10) for n in range(5)]
    assert [len(bundle) for bundle in bundles(batch, crew)] == [1] * 5


@pytest.mark.parametrize(("mean", "p95"), [(0.001, 1.0), (1.0, 0.001)])
def test_a_type_that_is_sometimes_slow_goes_one_by_one(mean: float, p95: float) -> None:
    timings = {"demo.echo": [ENOUGH_SAMPLES, mean, p95]}
    assert assemble([(["default"], ["demo.echo"], 2, timings)]).bundle_size("demo.echo") == 1
