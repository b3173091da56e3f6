"""Whatever dies, its work is done all the same: a test for each part, which prints how long it took.

The times are printed at the end of the run and not asserted: they say something on a quiet machine only.
"""

import os
import shutil
import signal
import time
from datetime import timedelta

import psutil
import pytest
from django.db import connections

from capataz.lifecycle.submission import submit
from capataz.models import Task, Worker
from tests.records import outcomes, state
from tests.workload import notes


class AtGate:
    """A task that waits at a gate, and the file in which it notes each of its starts."""

    def __init__(self, folder):
        self._gate = folder / "gate"
        self._file = f"gate-{time.time_ns()}.log"
        self.task = submit("testing.gate", {"file": self._file, "gate": str(self._gate)})

    @property
    def starts(self):
        return sum(line.startswith("start") for line in notes(self._file))

    def has_ended(self):
        return any(line.startswith("end") for line in notes(self._file))

    def open(self):
        self._gate.touch()


@pytest.fixture
def waits(platform, eventually, tmp_path):
    """A platform with one worker, at which a task waits at a gate."""

    def begin():
        platform.start_dispatcher()
        worker = platform.start_worker("1,1")
        waiting = AtGate(tmp_path)
        eventually(lambda: waiting.starts == 1 and state(waiting.task) == "running")
        return waiting, worker

    return begin


def test_a_child_that_is_killed(waits, eventually, measured):
    waiting, worker = waits()
    killed = time.monotonic()
    for child in worker.children():
        child.kill()
    eventually(lambda: waiting.starts == 2, every=0.01)
    measured("from the death of a child to the next start", time.monotonic() - killed, 1)
    waiting.open()

    eventually(lambda: state(waiting.task) == "succeeded")
    assert outcomes(waiting.task) == ["lost", "succeeded"]
    assert worker.is_alive()
    waiting.task.refresh_from_db()
    assert (waiting.task.losses, waiting.task.worker_losses) == (1, 0)


def test_a_child_past_its_hard_limit(platform, eventually, measured):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    task = submit("testing.misbehave", {"how": "hang"})
    eventually(lambda: state(task) == "dead")
    task.refresh_from_db()
    assert "hard time limit of 2 s exceeded" in task.error
    assert outcomes(task) == ["failed"]
    assert task.run_time >= timedelta(seconds=1.9)
    measured("from the hard limit to the end of the task", task.run_time.total_seconds() - 2, 1)
    assert worker.is_alive()


def test_a_worker_that_is_killed(waits, platform, eventually, measured):
    waiting, worker = waits()
    platform.start_worker("1,1")
    killed = time.monotonic()
    worker.kill()
    eventually(lambda: waiting.starts == 2, every=0.01)
    measured("from the death of a worker to the next start", time.monotonic() - killed, 5)
    waiting.open()

    eventually(lambda: state(waiting.task) == "succeeded")
    assert outcomes(waiting.task) == ["lost", "succeeded"]
    waiting.task.refresh_from_db()
    assert (waiting.task.attempts, waiting.task.losses, waiting.task.worker_losses) == (1, 0, 1)


def test_a_host_that_falls_silent_and_comes_back(waits, platform, eventually, measured):
    """As seen from the others: its sessions are open, its lock is held, and nothing comes."""
    waiting, zombie = waits()
    successor = platform.start_worker("1,1")
    family = [psutil.Process(zombie.pid), *zombie.children()]
    fell_silent = time.monotonic()
    for process in family:
        process.suspend()
    eventually(lambda: waiting.starts == 2, every=0.01)
    measured("from the silence of a host to the next start", time.monotonic() - fell_silent, 20)
    assert Task.objects.get(pk=waiting.task.pk).worker_id == successor.worker().pk
    for process in family:
        process.resume()
    # It stops what it had lost, and goes on as another one.
    eventually(lambda: Worker.objects.filter(pid=zombie.pid, state="running").exists())
    waiting.open()

    eventually(lambda: state(waiting.task) == "succeeded")
    assert outcomes(waiting.task) == ["lost", "succeeded"]
    assert Worker.objects.filter(pid=zombie.pid).count() == 2
    after = submit("demo.echo", {"message": "x"})
    eventually(lambda: state(after) == "succeeded")


def _kill(servers):
    servers.redis.kill()
    shutil.rmtree(servers.redis.directory / "appendonlydir")
    servers.redis.start()
    servers.redis.wait_until_ready()


@pytest.mark.parametrize("how", ["flushed", "killed with its data"])
def test_a_redis_that_forgets(waits, platform, servers, broker, eventually, measured, how):
    waiting, worker = waits()
    # Announced, and taken up by nobody: the only slot is busy.
    behind = [submit("demo.echo", {"message": "x"}) for _ in range(5)]
    eventually(lambda: Task.objects.filter(pk__in=[t.pk for t in behind], released_at__isnull=False).exists())
    os.kill(worker.pid, signal.SIGSTOP)  # or it would take up what it has fetched already
    broker.flushall() if how == "flushed" else _kill(servers)
    back = time.monotonic()
    os.kill(worker.pid, signal.SIGCONT)
    waiting.open()
    eventually(lambda: state(behind[0]) == "succeeded", every=0.01)
    measured(f"from the return of a Redis that was {how} to the next start", time.monotonic() - back, 10)
    eventually(lambda: {state(each) for each in behind} == {"succeeded"})
    assert [outcomes(each) for each in [*behind, waiting.task]] == [["succeeded"]] * 6


def test_a_postgresql_that_restarts(waits, client, servers, eventually, measured):
    waiting, worker = waits()
    servers.postgres.kill()
    answer = client.post(
        "/api/v1/tasks",
        {"type": "demo.echo"},
        content_type="application/json",
        headers={"Authorization": "Bearer x"},
    )
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    waiting.open()
    eventually(waiting.has_ended)  # and nobody can be told
    servers.postgres.start()
    servers.postgres.wait_until_ready()
    back = time.monotonic()
    connections.close_all()
    eventually(lambda: state(waiting.task) == "succeeded", every=0.01)
    measured("from the return of PostgreSQL to an outcome that had waited for it", time.monotonic() - back, 5)
    assert outcomes(waiting.task) == ["succeeded"]
    assert worker.is_alive()


def test_a_dispatcher_that_is_killed_while_another_one_runs(platform, eventually, measured):
    first, _ = platform.start_dispatcher(), platform.start_dispatcher()
    platform.start_worker("1,1")
    before = submit("demo.echo", {"message": "x"})
    eventually(lambda: state(before) == "succeeded")
    killed = time.monotonic()
    first.kill()
    task = submit("demo.echo", {"message": "x"})
    eventually(lambda: state(task) == "succeeded", every=0.01)
    measured("from the death of a dispatcher to a task through the other one", time.monotonic() - killed, 5)
    assert outcomes(task) == ["succeeded"]
