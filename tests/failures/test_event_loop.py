"""A worker that lives and does not consume: its event loop is deaf, or stands still."""

import os
import signal
import time

import pytest
import redis
from celery import current_app

from capataz.lifecycle.submission import submit
from capataz.models import Event, Task, Worker
from tests.records import state
from tests.workload import notes


def order(worker, command, **arguments):
    """Celery's remote control, of this worker only; does not wait for an answer."""
    current_app.control.broadcast(command, arguments=arguments, destination=[worker.worker().name])


@pytest.fixture
def lost_messages_stay_lost():
    """A verification that never comes in time: whatever runs has been announced anew for another reason."""
    return {"CAPATAZ_VERIFY_FIRST_SECONDS": "60", "CAPATAZ_VERIFY_LONGEST_SECONDS": "3600"}


def test_a_worker_that_hears_nothing_although_work_waits_connects_anew(
    platform, eventually, lost_messages_stay_lost
):
    platform.start_dispatcher(**lost_messages_stay_lost)
    worker = platform.start_worker("2,2", CAPATAZ_DEAF_SECONDS="2", CAPATAZ_HUNG_SECONDS="3600")
    heard = submit("demo.echo", {"message": "heard"})
    eventually(lambda: state(heard) == "succeeded")

    file = f"deaf-{worker.pid}.log"
    order(worker, "deafen", file=file)
    eventually(lambda: notes(file))
    unheard = submit("demo.echo", {"message": "unheard"})

    eventually(lambda: state(unheard) == "succeeded")
    assert Event.objects.filter(kind="worker.reconnected", worker_id=worker.worker().pk).exists()
    assert Worker.objects.count() == 1


def test_an_idle_worker_without_work_stays_connected(platform, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1", CAPATAZ_DEAF_SECONDS="1")
    beats = {Worker.objects.get().heartbeat_at}

    def enough():
        beats.add(worker.worker().heartbeat_at)
        return len(beats) > 4

    eventually(enough)
    assert not Event.objects.filter(kind="worker.reconnected").exists()


def test_a_worker_whose_event_loop_stands_still_gives_its_tasks_back_and_exits(
    platform, eventually, tmp_path
):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1", CAPATAZ_HUNG_SECONDS="2")
    gate, file = tmp_path / "gate", f"hung-{os.getpid()}.log"
    task = submit("testing.gate", {"file": file, "gate": str(gate)})
    eventually(lambda: state(task) == "running")

    order(worker, "hang", seconds=3600)

    eventually(lambda: not worker.is_alive())
    assert worker.popen.returncode == os.EX_SOFTWARE
    eventually(lambda: state(task) == "queued")
    gate.touch()
    platform.start_worker("1,1")
    eventually(lambda: state(task) == "succeeded")
    task.refresh_from_db()
    assert (task.losses, task.worker_losses) == (0, 0)
    assert len(notes(file)) == 3  # begun twice, ended once


def test_a_worker_that_slept_with_its_machine_is_not_taken_for_hung(platform, eventually):
    worker = platform.start_worker("1,1", CAPATAZ_HUNG_SECONDS="2")
    worker.signal(signal.SIGSTOP)
    time.sleep(5)
    worker.signal(signal.SIGCONT)
    beats = {worker.worker().heartbeat_at}
    eventually(lambda: beats.add(worker.worker().heartbeat_at) or len(beats) > 4)
    assert worker.is_alive()


def test_a_message_that_was_lost_with_the_connection_is_announced_anew(
    platform, eventually, broker, lost_messages_stay_lost
):
    platform.start_worker("1,1")
    dispatcher = platform.start_dispatcher(**lost_messages_stay_lost)
    for client in _workers_clients(broker):  # as long as it waits in a read, no message is taken
        broker.client_kill_filter(_id=client)
    task = submit("demo.echo", {"message": "lost on the way"}, priority=10)
    eventually(lambda: Task.objects.filter(pk=task.pk, released_at__isnull=False) or state(task) != "queued")
    eventually(lambda: state(task) == "succeeded")
    assert dispatcher.is_alive()


def _workers_clients(broker: redis.Redis):
    return [client["id"] for client in broker.client_list() if "brpop" in client["cmd"]]
