"""Recovery: telling the dead from the slow, and taking back what the dead held."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from capataz.database import Session, database_now
from capataz.lifecycle import presence, recovery
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.recovery import Recovery, bury, recover, verdict
from capataz.models import Attempt, Event, Task, Worker
from capataz.states import State
from tests import embedded_servers
from tests.lifecycle.stage import StagedWorker, kinds, now, release, states, tasks

Hire = Callable[..., StagedWorker]

WITH_FREE_LOCK, WITHOUT_BEAT = settings.LOOKS_WITH_FREE_LOCK, settings.LOOKS_WITHOUT_BEAT


@pytest.fixture
def watching(transactional_db: None) -> Iterator[Recovery]:
    made = Recovery()
    yield made
    made._session.close()


def look(watching: Recovery, times: int) -> None:
    for _ in range(times):
        watching.look()


def lost_at(task: Task, losses: int) -> Task:
    """The task after recovery took it from a worker, when so many workers had died around it before."""
    Task.objects.filter(pk=task.pk).update(worker_losses=losses)
    recover(Session("test").connection(), now(task).worker_id)
    return now(task)


# The verdict.


@pytest.mark.parametrize("looks", range(WITH_FREE_LOCK))
@pytest.mark.parametrize("lock_is_free", [True, False])
def test_a_worker_that_was_silent_for_a_moment_is_alive(looks: int, lock_is_free: bool) -> None:
    assert verdict(looks, lock_is_free) == ""


@pytest.mark.parametrize("looks", [WITH_FREE_LOCK, WITHOUT_BEAT])
def test_silence_and_a_free_lock_are_death_after_a_few_looks(looks: int) -> None:
    assert "session is gone" in verdict(looks, True)


@pytest.mark.parametrize("looks", range(WITH_FREE_LOCK, WITHOUT_BEAT))
def test_silence_alone_is_not_death_for_long(looks: int) -> None:
    assert verdict(looks, False) == ""


def test_silence_alone_is_death_in_the_end() -> None:
    assert f"{WITHOUT_BEAT} looks" in verdict(WITHOUT_BEAT, False)


# Looking.


def test_a_worker_whose_session_is_gone_is_buried_after_three_silent_looks(
    hire: Hire, watching: Recovery
) -> None:
    worker = hire()
    [task] = tasks(1)
    worker.run(task)
    worker.die()
    look(watching, 1 + WITH_FREE_LOCK - 1)  # the first look has nothing to compare with
    assert worker.row().state == "running"
    look(watching, 1)
    assert worker.row().state == "lost"
    assert now(task).state == State.QUEUED


def test_a_silent_worker_that_holds_its_lock_is_given_fifteen_looks(
    worker: StagedWorker, watching: Recovery
) -> None:
    look(watching, 1 + WITHOUT_BEAT - 1)
    assert worker.row().state == "running"
    look(watching, 1)
    assert worker.row().state == "lost"


def test_a_beat_starts_the_count_again(worker: StagedWorker, watching: Recovery) -> None:
    look(watching, WITHOUT_BEAT)
    worker.beat()
    look(watching, WITHOUT_BEAT)
    assert worker.row().state == "running"


def test_a_gap_between_two_looks_starts_the_count_again(
    hire: Hire, watching: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = hire()
    worker.die()
    look(watching, WITH_FREE_LOCK)
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "LARGEST_GAP", -recovery.LOOK)  # whatever the clock says now is a gap
        look(watching, 1)
    look(watching, WITH_FREE_LOCK - 1)
    assert worker.row().state == "running"
    look(watching, 1)
    assert worker.row().state == "lost"


def test_a_lost_connection_of_the_watcher_starts_the_count_again(hire: Hire, watching: Recovery) -> None:
    worker = hire()
    worker.die()
    look(watching, WITH_FREE_LOCK)
    watching._session.close()
    look(watching, WITH_FREE_LOCK)
    assert worker.row().state == "running"


def test_another_run_of_postgresql_starts_the_count_again(hire: Hire, watching: Recovery) -> None:
    """Also where a pooler in between has kept the watcher's connection."""
    worker = hire()
    worker.die()
    look(watching, WITH_FREE_LOCK)
    watching._postmaster = database_now() - timedelta(days=1)
    look(watching, WITH_FREE_LOCK)
    assert worker.row().state == "running"
    look(watching, 1)
    assert worker.row().state == "lost"


def test_a_restart_of_postgresql_does_not_look_like_mass_death(
    hire: Hire, watching: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every lock is free and no worker has beaten since: exactly what death looks like."""
    monkeypatch.setattr(recovery, "LARGEST_GAP", 3600.0)  # the restart alone has to be noticed
    crew = [hire(), hire()]
    look(watching, WITH_FREE_LOCK)
    restart_postgresql()
    watching._session.close()
    look(watching, WITH_FREE_LOCK)
    assert [worker.row().state for worker in crew] == ["running", "running"]


def restart_postgresql() -> None:
    from django.db import connections

    server = embedded_servers.servers().postgres
    connections.close_all()
    server.stop()
    server.start()
    server.wait_until_ready()


def test_a_worker_that_stopped_on_purpose_is_not_buried(worker: StagedWorker, watching: Recovery) -> None:
    Worker.objects.filter(pk=worker.id).update(state="stopped", stopped_at=timezone.now())
    worker.die()
    look(watching, WITHOUT_BEAT + 2)
    assert worker.row().state == "stopped"


def test_a_look_leaves_the_locks_it_tried_free(hire: Hire, watching: Recovery, session: Any) -> None:
    worker = hire()
    worker.die()
    look(watching, 2)
    assert session.execute("SELECT pg_try_advisory_lock(%s, %s)", [0x43505A57, worker.id]).fetchone() == (
        True,
    )


# Burying.


def test_a_burial_is_an_event_that_says_why(worker: StagedWorker, session: Any) -> None:
    bury(session, worker.id, worker.row().heartbeat_at, [], "because of the test")
    [event] = Event.objects.filter(worker_id=worker.id, kind="worker.lost")
    assert event.detail == {"because": "because of the test"}


def test_a_worker_that_has_beaten_since_it_was_looked_at_is_not_buried(
    worker: StagedWorker, session: Any
) -> None:
    seen = worker.row().heartbeat_at
    assert worker.beat()
    assert not bury(session, worker.id, seen, [worker.session.backend], "too late")
    assert worker.row().state == "running"
    assert worker.beat()  # its session is alive too
    assert not Event.objects.filter(kind="worker.lost").exists()


def test_a_worker_that_has_stopped_meanwhile_is_not_buried(worker: StagedWorker, session: Any) -> None:
    seen = worker.row().heartbeat_at
    presence.unregister(worker.connection, worker.id)
    assert not bury(session, worker.id, seen, [], "too late")
    assert worker.row().state == "stopped"


def test_a_buried_worker_is_granted_nothing_and_told_so(worker: StagedWorker, session: Any) -> None:
    [task] = tasks(1)
    release(task)
    bury(session, worker.id, worker.row().heartbeat_at, [], "test")
    assert worker.claim(task) == []
    assert worker.beat() is False


def test_a_burial_ends_the_sessions_that_the_worker_has_left(
    worker: StagedWorker, session: Any, eventually: Any
) -> None:
    """A frozen process keeps its session, and with it the locks on rows that recovery needs."""
    [task] = tasks(1)
    worker.run(task)
    with pytest.raises(Exception, match=r"terminat|closed|lost"), worker.connection.transaction():
        worker.connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # no other end of it
        worker.connection.execute("SELECT 1 FROM capataz_task FOR UPDATE")
        bury(session, worker.id, worker.row().heartbeat_at, [worker.session.backend], "test")
        eventually(lambda: recover(session, worker.id), within=30)
        worker.connection.execute("SELECT 1")
    assert now(task).state == State.QUEUED


def test_a_session_that_only_has_the_same_pid_is_left_alone(worker: StagedWorker, session: Any) -> None:
    pid, _ = worker.session.backend or (0, "")
    bury(session, worker.id, worker.row().heartbeat_at, [[pid, "2001-01-01 00:00:00+00"]], "test")
    assert worker.connection.execute("SELECT 1").fetchone() == (1,)


def test_what_the_dead_may_have_taken_out_of_redis_is_announced_anew(
    worker: StagedWorker, session: Any
) -> None:
    [here], [there] = tasks(1), tasks(1, queue="email")
    release(here, there)
    Worker.objects.filter(pk=worker.id).update(queues=["default"])
    bury(session, worker.id, worker.row().heartbeat_at, [], "test")
    assert (now(here).released_at, now(there).released_at is None) == (None, False)


# Recovering.


def test_what_had_not_started_waits_again_unspent(worker: StagedWorker, session: Any) -> None:
    [task] = tasks(1)
    worker.hold(task)
    assert recover(session, worker.id) == 1
    back = now(task)
    assert (back.state, back.run, back.worker_id, back.released_at) == (State.QUEUED, None, None, None)
    assert (back.attempts, back.worker_losses, kinds(task)) == (0, 0, [])
    assert not Attempt.objects.filter(task_id=task.pk).exists()


def test_a_task_that_kills_its_workers_before_anybody_sees_it_run_is_quarantined(
    hire: Hire, session: Any
) -> None:
    [task] = tasks(1)
    waits = []
    for _ in range(settings.MAX_WORKER_LOSSES):
        worker = hire()
        worker.hold(task)
        recover(session, worker.id)
        waits.append(now(task).state)
        Task.objects.filter(pk=task.pk, state=State.RETRYING).update(state=State.QUEUED, run_at=None)
    assert waits == [State.QUEUED, *[State.RETRYING] * (settings.MAX_WORKER_LOSSES - 2), State.DEAD]
    dead = now(task)
    assert (dead.attempts, dead.losses, dead.worker_losses) == (0, 0, 0)
    assert dead.error == f"quarantined after {settings.MAX_WORKER_LOSSES} deaths of its worker"
    assert kinds(task) == ["task.dead"]


def test_what_ran_has_lost_a_worker_and_no_attempt(worker: StagedWorker, session: Any) -> None:
    [task] = tasks(1)
    [grant] = worker.run(task)
    recover(session, worker.id)
    back = now(task)
    assert (back.state, back.attempts, back.losses, back.worker_losses) == (State.QUEUED, 0, 0, 1)
    assert (back.error, kinds(task)) == ("its worker died", ["task.lost"])
    [attempt] = Attempt.objects.filter(task_id=task.pk)
    assert (attempt.outcome, attempt.run, attempt.worker_id) == ("lost", grant.run, worker.id)


@pytest.mark.parametrize("before", range(1, 4))
def test_from_the_second_lost_worker_on_a_task_waits(worker: StagedWorker, before: int) -> None:
    [task] = tasks(1)
    worker.run(task)
    asked = database_now()
    lost = lost_at(task, before)
    assert lost.state == State.RETRYING
    assert asked <= lost.run_at - timedelta(seconds=2**before) <= database_now()


def test_a_task_around_which_too_many_workers_died_is_quarantined(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.run(task)
    lost = lost_at(task, settings.MAX_WORKER_LOSSES - 1)
    assert (lost.state, lost.run_at) == (State.DEAD, None)
    assert lost.error == f"quarantined after {settings.MAX_WORKER_LOSSES} deaths of its worker"
    assert kinds(task) == ["task.dead"]


@pytest.mark.parametrize("started", [True, False])
def test_a_task_whose_cancellation_was_asked_for_ends_cancelled(
    worker: StagedWorker, session: Any, started: bool
) -> None:
    [task] = tasks(1)
    worker.run(task) if started else worker.hold(task)
    cancel(task)
    recover(session, worker.id)
    assert now(task).state == State.CANCELLED
    assert kinds(task) == ["task.cancelRequested", "task.cancelled"]


def test_a_locked_row_is_taken_at_the_next_look(hire: Hire, watching: Recovery, locked: Any) -> None:
    worker = hire()
    one, other = tasks(2)
    worker.run(one, other)
    worker.die()
    with locked(one):
        look(watching, 1 + WITH_FREE_LOCK)
        assert states([one, other]) == [State.RUNNING, State.QUEUED]
    look(watching, 1)
    assert now(one).state == State.QUEUED


@pytest.mark.parametrize("state", ["lost", "stopped"])
def test_rows_that_a_worker_left_behind_are_swept_up(
    worker: StagedWorker, watching: Recovery, state: str
) -> None:
    [task] = tasks(1)
    worker.run(task)
    Worker.objects.filter(pk=worker.id).update(state=state, stopped_at=timezone.now())
    look(watching, 1)
    assert now(task).state == State.QUEUED


def test_rows_of_a_worker_whose_own_row_is_gone_are_swept_up(
    worker: StagedWorker, watching: Recovery
) -> None:
    [task] = tasks(1)
    worker.run(task)
    Worker.objects.all().delete()
    look(watching, 1)
    assert now(task).state == State.QUEUED


def test_what_a_living_worker_holds_is_not_touched(
    worker: StagedWorker, hire: Hire, watching: Recovery
) -> None:
    mine, theirs = tasks(2)
    dead = hire()
    worker.run(mine)
    dead.run(theirs)
    dead.die()
    for _ in range(1 + WITH_FREE_LOCK):
        worker.beat()
        watching.look()
    assert states([mine, theirs]) == [State.RUNNING, State.QUEUED]


def test_a_zombie_cannot_finish_what_was_taken_from_it(worker: StagedWorker, session: Any) -> None:
    [task] = tasks(1)
    grants = worker.run(task)
    recover(session, worker.id)
    assert worker.end(grants) == set()
    assert now(task).state == State.QUEUED


def test_a_recovered_task_ran_until_its_death_was_seen(worker: StagedWorker, session: Any) -> None:
    [task] = tasks(1)
    worker.run(task, ago=60)
    recover(session, worker.id)
    [attempt] = Attempt.objects.filter(task_id=task.pk)
    assert attempt.finished_at - attempt.started_at >= timedelta(seconds=60)
