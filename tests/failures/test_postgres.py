"""While PostgreSQL is away nothing is accepted and nothing is forgotten."""

import time

import psutil
import pytest
from django.db import OperationalError, connection, connections
from django.db.models.functions import Now
from psycopg.errors import LockNotAvailable

from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.retry import retry
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Task, Worker
from tests.processes import PATIENCE
from tests.workload import notes


def test_a_restart_loses_no_outcome_and_kills_no_worker(platform, records, eventually, restart_postgres):
    platform.start_dispatcher()
    workers = [platform.start_worker("2,2"), platform.start_worker("2,2")]
    records.submit(200, seconds=0.05)
    for share in (20, 80):
        eventually(
            lambda share=share: Task.objects.filter(pk__in=records.ids, state="succeeded").count() > share
        )
        restart_postgres()
    eventually(records.all_succeeded)
    records.check()
    assert Worker.objects.alive().filter(pid__in=[worker.pid for worker in workers]).count() == 2
    assert Worker.objects.filter(state="lost").count() == 0
    assert not Attempt.objects.filter(task_id__in=records.ids, outcome="lost").exists()


def test_outcomes_wait_for_a_database_that_is_away(platform, servers, records, eventually):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    records.submit(2, seconds=2)
    eventually(lambda: Task.objects.filter(pk__in=records.ids, state="running").count() == 2)
    servers.postgres.stop()
    for held in connections.all():
        held.close()
    eventually(lambda: len([line for line in records.lines() if line[0] == "end"]) == 2)
    with pytest.raises(OperationalError):
        submit("demo.echo", {"message": "no"})
    connection.close()
    servers.postgres.start()
    servers.postgres.wait_until_ready()
    eventually(records.all_succeeded)
    records.check()
    assert len([line for line in records.lines() if line[0] == "start"]) == 2


def test_terminated_backends_are_replaced(platform, records, eventually):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    records.submit(150, seconds=0.05)
    for _ in range(5):
        done = Task.objects.filter(pk__in=records.ids, state="succeeded").count()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'capataz %%' AND datname = current_database()"
            )
        eventually(
            lambda done=done: Task.objects.filter(pk__in=records.ids, state="succeeded").count() > done
        )
    eventually(records.all_succeeded)
    records.check()
    assert Worker.objects.filter(state="lost").count() == 0


def test_a_row_that_somebody_locks_delays_only_itself(platform, records, eventually):
    platform.start_dispatcher()
    platform.start_worker("3,3")
    locked = submit("demo.sleep", {"seconds": 1})
    eventually(lambda: Task.objects.get(pk=locked.pk).state == "running")
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SET idle_in_transaction_session_timeout = 0")
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM capataz_task WHERE id = %s FOR UPDATE", [locked.pk])
            time.sleep(2)  # it has ended by now, and cannot be finished
            records.submit(50)
            eventually(records.all_succeeded)
            assert Task.objects.get(pk=locked.pk).state == "running"
            cursor.execute("ROLLBACK")
    finally:
        other.close()
    eventually(lambda: Task.objects.get(pk=locked.pk).state == "succeeded")
    assert Attempt.objects.filter(task_id=locked.pk).count() == 1


def test_a_worker_that_is_asked_to_stop_without_postgresql_goes_all_the_same(
    platform, servers, eventually, tmp_path
):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1", CAPATAZ_SHUTDOWN_GRACE_SECONDS="1")
    gate, file = tmp_path / "gate", f"stop-{time.time_ns()}.log"
    task = submit("testing.gate", {"file": file, "gate": str(gate)})
    eventually(lambda: notes(file))
    servers.postgres.stop()
    for held in connections.all():
        held.close()

    worker.stop(within=PATIENCE)

    gate.touch()
    servers.postgres.start()
    servers.postgres.wait_until_ready()
    platform.start_worker("1,1")
    eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")


def test_an_exclusive_task_is_stopped_by_a_worker_that_is_cut_off(platform, servers, eventually, tmp_path):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    file, gate = f"exclusive-{time.time_ns()}.log", tmp_path / "gate"
    task = submit("testing.exclusive", {"file": file, "gate": str(gate)})
    innocent = submit("testing.gate", {"file": f"innocent-{file}", "gate": str(gate)})
    eventually(lambda: notes(file) and notes(f"innocent-{file}"))
    servers.postgres.stop()
    for held in connections.all():
        held.close()
    eventually(lambda: not psutil.pid_exists(int(notes(file)[0])))
    servers.postgres.start()
    servers.postgres.wait_until_ready()
    gate.touch()
    eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")
    eventually(lambda: Task.objects.get(pk=innocent.pk).state == "succeeded")
    assert Task.objects.get(pk=task.pk).losses == 0
    assert len(notes(f"innocent-{file}")) == 2


@pytest.mark.parametrize(("move", "before"), [(cancel, "queued"), (retry, "dead")])
def test_a_person_does_not_wait_long_for_a_row_that_somebody_holds(transactional_db, move, before):
    task = submit("demo.echo", {"message": "x"})
    Task.objects.filter(pk=task.pk).update(state=before, finished_at=Now() if before == "dead" else None)
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM capataz_task WHERE id = %s FOR UPDATE", [task.pk])
            with pytest.raises(OperationalError) as caught:
                move(task)
    finally:
        other.close()
    assert isinstance(caught.value.__cause__, LockNotAvailable)
