"""Presence: how a worker shows that it lives."""

from collections.abc import Callable
from typing import Any

import pytest

from capataz.lifecycle import presence
from capataz.lifecycle.presence import LOCK_CLASS, Sign
from capataz.models import Event, Worker
from capataz.models.worker import ALIVE
from tests.lifecycle.stage import StagedWorker

Hire = Callable[..., StagedWorker]


def lock_is_free(session: Any, worker_id: int) -> bool:
    with session.transaction():
        query = "SELECT pg_try_advisory_xact_lock(%s, %s)"
        return bool(session.execute(query, [LOCK_CLASS, worker_id]).fetchone()[0])


def test_a_new_worker_is_alive_and_told_of(hire: Hire) -> None:
    worker = hire(slots=4, queues=["default"], types=["demo.echo"])
    row = worker.row()
    assert row.is_alive
    assert (row.queues, row.types, row.max_concurrency) == (["default"], ["demo.echo"], 4)
    assert [event.kind for event in Event.objects.filter(worker_id=worker.id)] == ["worker.started"]


def test_every_incarnation_has_an_identity_of_its_own(hire: Hire) -> None:
    assert hire().id != hire().id


def test_a_living_worker_holds_its_lock_and_a_dead_one_does_not(
    hire: Hire, session: Any, eventually: Callable[..., Any]
) -> None:
    worker = hire()
    assert not lock_is_free(session, worker.id)
    worker.die()
    eventually(lambda: lock_is_free(session, worker.id))


def test_no_worker_holds_the_lock_of_another(hire: Hire, session: Any) -> None:
    one, other = hire(), hire()
    one.die()
    assert not lock_is_free(session, other.id)


def test_a_beat_brings_the_latest_facts(worker: StagedWorker) -> None:
    before = worker.row().heartbeat_at
    timings = {"demo.echo": [20, 0.001, 0.002]}
    sign = Sign(
        phase="running",
        processes=2,
        max_concurrency=8,
        queues=["email"],
        timings=timings,
        backends=[[1, "x"]],
    )
    assert presence.beat(worker.connection, worker.id, sign)
    row = worker.row()
    assert row.heartbeat_at > before
    assert (row.phase, row.processes, row.max_concurrency, row.queues) == ("running", 2, 8, ["email"])
    assert (row.timings, row.backends) == (timings, [[1, "x"]])


def test_a_draining_worker_is_still_alive(worker: StagedWorker) -> None:
    worker.beat(state="draining")
    assert worker.row().state == "draining"
    assert worker.row().is_alive


@pytest.mark.parametrize("state", ["lost", "stopped"])
def test_who_was_given_up_for_dead_cannot_beat_itself_back_to_life(worker: StagedWorker, state: str) -> None:
    Worker.objects.filter(pk=worker.id).update(state=state)
    assert worker.beat() is False
    assert worker.row().state == state


def test_a_worker_that_stops_says_so_once(worker: StagedWorker) -> None:
    presence.unregister(worker.connection, worker.id)
    presence.unregister(worker.connection, worker.id)
    assert (worker.row().state, worker.row().stopped_at is None) == ("stopped", False)
    assert Event.objects.filter(worker_id=worker.id, kind="worker.stopped").count() == 1


def test_a_lost_worker_does_not_become_a_stopped_one(worker: StagedWorker) -> None:
    Worker.objects.filter(pk=worker.id).update(state="lost")
    presence.unregister(worker.connection, worker.id)
    assert worker.row().state == "lost"


def test_what_happens_to_a_worker_is_told_under_its_name(worker: StagedWorker) -> None:
    presence.tell(worker.connection, worker.id, "worker.scaled", {"before": 2, "after": 3})
    event = Event.objects.get(kind="worker.scaled")
    assert (event.worker_id, event.subject) == (worker.id, worker.row().name)
    assert event.detail == {"before": 2, "after": 3}


def test_only_the_living_are_listed_as_alive(hire: Hire) -> None:
    running, draining, stopped = hire(), hire(), hire()
    draining.beat(state="draining")
    presence.unregister(stopped.connection, stopped.id)
    assert {worker.pk for worker in Worker.objects.alive()} == {running.id, draining.id}
    assert set(ALIVE) == {"running", "draining"}
