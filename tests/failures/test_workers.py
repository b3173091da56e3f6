"""What happens to tasks when the processes that run them die."""

import signal
import time

import psutil
import pytest
from celery import current_app
from django.db import connection

from capataz.lifecycle.submission import submit
from capataz.models import Event, Task, Worker
from tests.records import outcomes, state
from tests.workload import notes


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


def submit_at_gate(gate, **options):
    file = f"gate-{time.time_ns()}.log"
    return submit("testing.gate", {"file": file, "gate": str(gate)}, **options), file


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGTERM"])
def test_a_task_that_kills_its_process_is_quarantined_and_the_worker_lives(platform, eventually, signal):
    platform.start_dispatcher()
    worker = platform.start_worker()
    task = submit("demo.crash", {"signal": signal, "times": 1000})

    eventually(lambda: state(task) == "dead")

    task.refresh_from_db()
    assert task.losses == 3
    assert signal in task.error
    assert outcomes(task) == ["lost"] * 3
    assert worker.is_alive()
    after = submit("demo.echo", {"message": "still here"})
    eventually(lambda: state(after) == "succeeded")


def test_an_exit_code_is_named(platform, eventually):
    platform.start_dispatcher()
    platform.start_worker()
    task = submit("testing.misbehave", {"how": "os_exit"})
    eventually(lambda: state(task) == "dead")
    task.refresh_from_db()
    assert "exit code 5" in task.error


def test_a_long_innocent_task_survives_five_worker_kills_in_a_row(platform, eventually, gate):
    platform.start_dispatcher()
    task, file = submit_at_gate(gate)
    for kills in range(5):
        worker = platform.start_worker()
        # The wait grows with every worker lost: 0, 2, 4, 8, 16 seconds.
        eventually(lambda kills=kills: len(notes(file)) == kills + 1 and state(task) == "running")
        worker.kill()
        eventually(lambda worker=worker: not Worker.objects.alive().filter(pid=worker.pid).exists())
    platform.start_worker()
    gate.touch()
    eventually(lambda: state(task) == "succeeded")
    task.refresh_from_db()
    assert task.worker_losses == 5
    assert outcomes(task) == ["lost"] * 5 + ["succeeded"]


def test_what_a_killed_worker_had_not_started_is_given_to_others_unspent(platform, records, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("2,2")
    records.submit(100, seconds=0.3)
    eventually(lambda: Task.objects.filter(pk__in=records.ids, state="running").count() == 2)
    worker.kill()
    platform.start_worker("4,4")
    eventually(records.all_succeeded)
    records.check()
    assert Task.objects.filter(pk__in=records.ids, worker_losses__gt=0).count() <= 2


def test_a_worker_that_is_asked_to_stop_gives_its_tasks_back_unspent(platform, records, eventually, gate):
    platform.start_dispatcher()
    worker = platform.start_worker("2,2", CAPATAZ_SHUTDOWN_GRACE_SECONDS="1")
    task, _ = submit_at_gate(gate)
    records.submit(40, seconds=0.2)
    eventually(lambda: state(task) == "running")

    worker.stop(within=30)

    task.refresh_from_db()
    assert task.state in ("queued", "retrying")
    assert (task.attempts, task.losses, task.worker_losses) == (0, 0, 0)
    assert not Task.objects.filter(worker_id__isnull=False).exists()
    assert worker.popen.returncode == 0
    assert Worker.objects.get(pid=worker.pid).state == "stopped"
    gate.touch()
    platform.start_worker("4,4")
    eventually(lambda: state(task) == "succeeded")
    eventually(records.all_succeeded)
    assert outcomes(task)[-1] == "succeeded"


def test_killing_a_worker_leaves_no_process_behind(platform, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("3,3")
    family = eventually(lambda: len(worker.children()) >= 3 and worker.children())
    for _ in range(2):
        submit("demo.sleep", {"seconds": 3000})
    eventually(lambda: Task.objects.filter(state="running").count() == 2)
    worker.kill()
    eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in family))


def test_what_a_task_left_behind_does_not_keep_the_sessions_of_a_dead_worker(platform, eventually):
    dispatcher = platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    # Its successor is forked by a parent whose sessions are all open by now.
    eventually(lambda: len(worker.worker().backends) == 2)
    [first] = worker.children()
    first.kill()
    eventually(lambda: [child.pid for child in worker.children()] not in ([], [first.pid]))
    file = f"daemon-{time.time_ns()}.log"
    submit("testing.misbehave", {"how": "daemon", "file": file}, time_limit=600)
    [lingering] = eventually(lambda: notes(file))
    sessions = {pid for pid, _ in worker.worker().backends}
    dispatcher.kill()  # it would end them itself
    try:
        worker.kill()
        eventually(lambda: not sessions & living_sessions())
        assert psutil.pid_exists(int(lingering))
    finally:
        psutil.Process(int(lingering)).kill()


def living_sessions():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity")
        return {pid for [pid] in cursor.fetchall()}


def test_the_hard_limit_kills_the_whole_family_of_a_task(platform, eventually):
    platform.start_dispatcher()
    platform.start_worker()
    file = f"family-{time.time_ns()}.log"
    task = submit("testing.misbehave", {"how": "grandchild", "file": file})
    eventually(lambda: state(task) == "dead")
    task.refresh_from_db()
    assert "hard time limit of 2 s exceeded" in task.error
    [pid] = notes(file)
    eventually(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie")


def test_two_dispatchers_share_the_work_and_one_may_die(platform, records, eventually):
    first, _ = platform.start_dispatcher(), platform.start_dispatcher()
    platform.start_worker("3,3")
    records.submit(300, seconds=0.02)
    eventually(lambda: Task.objects.filter(pk__in=records.ids, state="succeeded").count() > 50)
    first.signal(signal.SIGSTOP)
    eventually(records.all_succeeded)
    first.kill()
    records.check()
    assert len([line for line in records.lines() if line[0] == "start"]) == 300


def test_worker_deaths_are_events(platform, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker()
    worker.kill()
    eventually(lambda: Event.objects.filter(kind="worker.lost").exists())
    assert Worker.objects.get(pid=worker.pid).state == "lost"


@pytest.mark.parametrize("how", ["control shutdown", "SIGQUIT", "SIGINT"])
def test_every_way_of_stopping_gives_back_what_runs(platform, records, eventually, gate, how):
    platform.start_dispatcher()
    worker = platform.start_worker("2,2", CAPATAZ_SHUTDOWN_GRACE_SECONDS="1")
    task, _ = submit_at_gate(gate)
    eventually(lambda: state(task) == "running")
    if how == "control shutdown":
        current_app.control.shutdown()
    else:
        worker.signal(signal.Signals[how])
    eventually(lambda: not worker.is_alive())
    task.refresh_from_db()
    assert task.state == "queued"
    assert (task.attempts, task.losses, task.worker_losses) == (0, 0, 0)
    assert Worker.objects.get(pid=worker.pid).state == "stopped"
