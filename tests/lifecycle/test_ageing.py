"""Ageing: who has waited too long starts, whatever is more urgent, and the urgent go on."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.db.models import F
from django.db.models.functions import Now

from capataz import pointer
from capataz.lifecycle.dispatch import EPOCH_KEY, Dispatcher
from capataz.lifecycle.overriding import override
from capataz.models import Task
from tests.lifecycle.stage import StagedWorker, now, tasks

Hire = Callable[..., StagedWorker]


@pytest.fixture(autouse=True)
def _an_empty_broker_that_knows_its_epoch(broker: redis.Redis) -> None:
    broker.set(EPOCH_KEY, "of this test")


def grow_old(*some: Task) -> None:
    ago = timedelta(hours=1)
    ids = [task.pk for task in some]
    Task.objects.filter(pk__in=ids).update(created_at=F("created_at") - ago)


def starts_of_a_flood(worker: StagedWorker, dispatcher: Dispatcher, count: int, **about: Any) -> list[Task]:
    """So many tasks that start, by turns, while there is always more of the flood."""
    started: list[Task] = []
    while len(started) < count:
        tasks(4, priority=10, **about)
        dispatcher._kept_house_at = float("-inf")
        dispatcher._lanes._looked_for_aged.clear()
        dispatcher.turn()
        free = list(
            Task.objects.filter(released_at__isnull=False, run__isnull=True).order_by(
                "released_at", "-priority"
            )[:2]
        )
        started += free
        worker.end(worker.claim(*free))
    return started


@pytest.mark.parametrize("limited", [False, True])
def test_an_old_task_starts_under_an_endless_flood_and_the_flood_goes_on(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], limited: bool
) -> None:
    worker = hire(slots=2)
    if limited:
        override("demo.echo", {"limits": [{"concurrency": 4}]})
    old = tasks(20, priority=0)
    grow_old(*old)
    started = starts_of_a_flood(worker, new_dispatcher(), 24)
    aged = [task for task in started if task in old]
    assert 2 <= len(aged) <= 12
    assert aged[0] == old[0]


def test_a_young_task_waits_for_the_flood(hire: Hire, new_dispatcher: Callable[[], Dispatcher]) -> None:
    worker = hire(slots=2)
    young = tasks(1, priority=0)
    assert not set(young) & set(starts_of_a_flood(worker, new_dispatcher(), 12))


@pytest.mark.parametrize("limited", [False, True])
def test_who_was_submitted_long_ago_for_now_is_no_older_than_others(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], limited: bool
) -> None:
    worker = hire(slots=2)
    if limited:
        override("demo.echo", {"limits": [{"concurrency": 4}]})
    due = tasks(5, priority=0)
    grow_old(*due)
    Task.objects.filter(pk__in=[task.pk for task in due]).update(run_at=Now())
    assert not {task.pk for task in due} & {
        task.pk for task in starts_of_a_flood(worker, new_dispatcher(), 12)
    }


def test_what_is_released_for_its_age_is_announced_as_the_most_urgent(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], broker: redis.Redis
) -> None:
    hire(slots=1)
    [old] = tasks(1, priority=0)
    grow_old(old)
    tasks(5, priority=8)
    new_dispatcher().turn()
    assert now(old).released_at
    urgent = broker.lrange(pointer.queue_key("default", 0), 0, -1)
    assert any(str(old.pk).encode() in entry for entry in urgent)
    assert broker.llen(pointer.queue_key("default", 10)) == 0


def test_it_is_so_also_when_it_is_verified(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], broker: redis.Redis
) -> None:
    hire(slots=1)
    [old] = tasks(1, priority=0)
    grow_old(old)
    new_dispatcher().turn()
    broker.delete(*[pointer.queue_key("default", step) for step in (0, 2, 4, 6, 8, 10)])
    Task.objects.update(verify_at=Now() - timedelta(seconds=1))
    new_dispatcher().turn()
    assert broker.llen(pointer.queue_key("default", 0)) == 1


def test_what_grows_old_in_redis_is_announced_anew_as_the_most_urgent(
    hire: Hire, new_dispatcher: Callable[[], Dispatcher], broker: redis.Redis
) -> None:
    hire(slots=1)
    [old] = tasks(1, priority=0)
    new_dispatcher().turn()
    assert broker.llen(pointer.queue_key("default", 10)) == 1
    tasks(5, priority=10)
    Task.objects.filter(pk=old.pk).update(
        created_at=Now() - timedelta(minutes=6), released_at=Now() - timedelta(minutes=2)
    )
    new_dispatcher().turn()
    assert broker.llen(pointer.queue_key("default", 0)) >= 1
    urgent = broker.lrange(pointer.queue_key("default", 0), 0, -1)
    assert any(str(old.pk).encode() in entry for entry in urgent)
