"""Task results: django-celery-results knows how handlers' tasks ended, and nothing of their payloads."""

import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import current_app
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from django.db import connection
from django.db.models.functions import Now
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_results.backends.database import DatabaseBackend
from django_celery_results.models import TaskResult

from capataz.database import Session
from capataz.lifecycle import execution, retention
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.execution import Finish
from capataz.lifecycle.recovery import recover
from capataz.lifecycle.retry import retry
from capataz.models import Outcome, Task
from capataz.states import State
from capataz.worker.results import TaskFailed
from tests.lifecycle.stage import StagedWorker, now, tasks, together

SECRET = {"message": "nobody else's business"}


def result_of(task: Task) -> TaskResult:
    return TaskResult.objects.get(task_id=str(task.pk))


def is_known(task: Task) -> bool:
    return TaskResult.objects.filter(task_id=str(task.pk)).exists()


def die(worker: StagedWorker, *dying: Task, error: str = "ValueError: no") -> None:
    grants = worker.run(*dying)
    worker.end(grants, State.DEAD, Outcome.FAILED, error=error, traceback="Traceback: here")


def test_a_success_is_recorded_as_django_celery_results_does_it(worker: StagedWorker) -> None:
    [task] = tasks(1, data=SECRET)
    worker.end(worker.run(task), result='{"answer": [42, null]}')
    found, row = result_of(task), now(task)
    assert (found.status, found.task_name, found.worker) == ("SUCCESS", "demo.echo", worker.row().name)
    assert json.loads(found.result) == {"answer": [42, None]}
    assert (found.content_type, found.content_encoding) == ("application/json", "utf-8")
    assert (found.date_started, found.date_done) == (row.started_at, row.finished_at)
    assert found.date_created == row.created_at
    assert json.loads(found.meta) == {"children": []}
    assert found.traceback is None


def test_the_columns_are_those_of_a_plain_task(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), result='"same"')
    plain = str(uuid.uuid4())
    current_app.backend.store_result(plain, "same", "SUCCESS", request=Context(children=[]))
    ours, theirs = result_of(task), TaskResult.objects.get(task_id=plain)
    for name in ("status", "result", "content_type", "content_encoding", "traceback", "meta"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_the_schedule_that_submitted_it_is_named(worker: StagedWorker) -> None:
    every = IntervalSchedule.objects.create(every=1, period="hours")
    schedule = PeriodicTask.objects.create(name="hourly greeting", task="demo.echo", interval=every)
    [task] = tasks(1, schedule_id=schedule.pk)
    worker.end(worker.run(task), result="1")
    assert result_of(task).periodic_task_name == "hourly greeting"


def test_nothing_of_the_payload_is_recorded(worker: StagedWorker) -> None:
    [task] = tasks(1, data=SECRET)
    worker.end(worker.run(task), result="1")
    assert "nobody else" not in json.dumps(TaskResult.objects.values().get(), default=str)
    assert (result_of(task).task_args, result_of(task).task_kwargs) == (None, None)


def test_a_task_without_a_result_has_null(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), result=None)
    assert result_of(task).result == "null"


def test_a_dead_letter_is_a_failure_that_celery_can_read(worker: StagedWorker) -> None:
    [task] = tasks(1)
    die(worker, task, error="ValueError: no such month")
    found = result_of(task)
    assert (found.status, found.traceback) == ("FAILURE", "Traceback: here")
    meta = DatabaseBackend(app=current_app)._get_task_meta_for(str(task.pk))
    assert isinstance(meta["result"], TaskFailed)
    assert str(meta["result"]) == "ValueError: no such month"
    assert current_app.AsyncResult(str(task.pk)).traceback == "Traceback: here"


def test_a_failure_that_is_tried_again_is_not_recorded(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.RETRYING, Outcome.FAILED, error="ValueError: no")
    assert not is_known(task)


def test_what_is_given_back_is_not_recorded(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.QUEUED, Outcome.GIVEN_BACK)
    assert not is_known(task)


def test_a_waiting_task_that_is_cancelled_is_revoked(transactional_db: None) -> None:
    [task] = tasks(1)
    cancel(task)
    assert (result_of(task).status, result_of(task).worker) == ("REVOKED", None)
    meta = DatabaseBackend(app=current_app)._get_task_meta_for(str(task.pk))
    assert isinstance(meta["result"], TaskRevokedError)
    with pytest.raises(TaskRevokedError):
        current_app.AsyncResult(str(task.pk)).get(timeout=5)


def test_a_running_task_that_is_cancelled_is_revoked_when_it_has_stopped(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.run(task)
    cancel(task)
    assert not is_known(task)
    # Whatever it ends with, the request to cancel it decides.
    worker.end([grant], State.QUEUED, Outcome.GIVEN_BACK)
    assert now(task).state == "cancelled"
    assert result_of(task).status == "REVOKED"


def test_a_task_past_its_deadline_is_revoked(turn: Callable[[], int]) -> None:
    late, punctual = tasks(2)
    Task.objects.filter(pk=late.pk).update(expires_at=Now() - timedelta(seconds=1))
    turn()
    assert result_of(late).status == "REVOKED"
    assert json.loads(result_of(late).result)["exc_message"] == ["not started before its deadline"]
    assert not is_known(punctual)


def test_recovery_records_what_it_ends(worker: StagedWorker, settings: Any) -> None:
    quarantined, wanted, lost = tasks(3)
    worker.run(quarantined, wanted, lost)
    Task.objects.filter(pk=quarantined.pk).update(worker_losses=settings.MAX_WORKER_LOSSES - 1)
    cancel(wanted)
    session = Session("test")
    recover(session.connection(), worker.id)
    session.close()
    assert (result_of(quarantined).status, result_of(wanted).status) == ("FAILURE", "REVOKED")
    assert result_of(quarantined).worker == worker.row().name
    assert not is_known(lost)


def test_a_retried_task_leaves_no_stale_failure(worker: StagedWorker) -> None:
    [task] = tasks(1)
    die(worker, task)
    retry(task)
    assert not is_known(task)
    assert TaskResult.objects.get_task(str(task.pk)).status == "PENDING"
    worker.end(worker.run(task), result="2")
    assert (result_of(task).status, result_of(task).traceback) == ("SUCCESS", None)


def test_a_record_that_exists_is_brought_up_to_date(worker: StagedWorker) -> None:
    [task] = tasks(1)
    current_app.backend.store_result(str(task.pk), None, "STARTED")
    worker.end(worker.run(task), result="3")
    assert (result_of(task).status, result_of(task).result) == ("SUCCESS", "3")


def test_it_can_be_switched_off(worker: StagedWorker, settings: Any) -> None:
    settings.TASK_RESULTS = False
    ended, cancelled = tasks(2)
    worker.end(worker.run(ended), result="1")
    cancel(cancelled)
    assert not TaskResult.objects.exists()
    assert current_app.AsyncResult(str(ended.pk)).get(timeout=5) == 1


def test_a_task_is_found_by_the_id_that_its_client_gave_it(worker: StagedWorker) -> None:
    result = current_app.tasks["demo.echo"].apply_async(kwargs={"message": "x"}, task_id="order 17")
    worker.end(worker.run(Task.objects.get(pk=result.id)), result="3")
    assert current_app.AsyncResult("order 17").get(timeout=5) == 3


def test_the_end_of_a_task_and_its_record_are_one_transaction(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.run(task)
    finish = Finish(grant.id, grant.run, State.SUCCEEDED, Outcome.SUCCEEDED, result="1", started_ago=1.0)
    with worker.connection.transaction(force_rollback=True):
        execution.finish(worker.connection, [finish])
    assert (now(task).state, is_known(task)) == ("running", False)


def test_pruning_a_task_deletes_its_record(worker: StagedWorker) -> None:
    old, young = tasks(2)
    worker.end(worker.run(old, young), result="1")
    plain = str(uuid.uuid4())
    current_app.backend.store_result(plain, "plain", "SUCCESS")
    Task.objects.filter(pk=old.pk).update(finished_at=Now() - timedelta(days=8))
    retention.prune()
    assert set(TaskResult.objects.values_list("task_id", flat=True)) == {str(young.pk), plain}


def test_celerys_clean_up_leaves_a_record_with_its_task(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), result="1")
    current_app.backend.store_result(str(uuid.uuid4()), "plain", "SUCCESS")
    TaskResult.objects.update(date_done=Now() - timedelta(days=2))
    current_app.backend.cleanup()
    assert [found.task_id for found in TaskResult.objects.all()] == [str(task.pk)]


def test_many_workers_and_people_at_once_do_not_deadlock(hire: Callable[..., StagedWorker]) -> None:
    crew = [hire() for _ in range(4)]
    held = [tasks(100) for _ in crew]
    grants = [worker.run(*mine) for worker, mine in zip(crew, held, strict=True)]
    waiting = tasks(100)

    def cancel_all() -> None:
        for task in waiting:
            cancel(task)
        connection.close()

    together(
        cancel_all,
        *(lambda w=w, g=g: w.end(reversed(g), result="1") for w, g in zip(crew, grants, strict=True)),
    )
    assert TaskResult.objects.filter(status="SUCCESS").count() == 400
    assert TaskResult.objects.filter(status="REVOKED").count() == 100
