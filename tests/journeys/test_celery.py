"""Capataz is still Celery: plain tasks, a purge, pools, eager mode, and Redis without payloads."""

import time
import uuid

import pytest
from celery import current_app
from django.conf import settings

from capataz.errors import InvalidSubmission
from capataz.lifecycle.submission import submit
from capataz.models import Task, Worker
from tests.processes import PATIENCE, celery
from tests.workload import notes, plain_add, plain_record


@pytest.fixture
def running(platform):
    platform.start_dispatcher()
    platform.worker = platform.start_worker("2,2")
    return platform


def test_plain_tasks_can_be_allowed_by_name(platform, eventually):
    platform.start_worker("1,1", CAPATAZ_PLAIN_TASKS="tests.workload.plain_add")
    file = f"allowed-{uuid.uuid4().hex}.log"
    plain_record.delay(file, 0)
    allowed = plain_add.delay(2, 3)
    eventually(lambda: allowed.state == "SUCCESS")
    assert notes(file) == []


def test_send_task_of_a_handler_leaves_a_row_or_refuses_loudly(transactional_db):
    current_app.send_task("demo.echo", kwargs={"message": "x"})
    assert Task.objects.count() == 1
    with pytest.raises(InvalidSubmission):
        current_app.send_task("demo.echo", args=(1, 2))
    with pytest.raises(InvalidSubmission):
        current_app.tasks["demo.echo"].delay(nonsense=1)
    current_app.signature("demo.echo", kwargs={"message": "signed"}).delay()
    assert Task.objects.count() == 2


def test_a_plain_task_of_a_killed_worker_runs_again_after_its_visibility_timeout(platform, eventually):
    first = platform.start_worker("1,1", CAPATAZ_VISIBILITY_TIMEOUT_SECONDS="6")
    file = f"plain-{uuid.uuid4().hex}.log"
    plain_record.delay(file, 2)
    eventually(lambda: notes(file) == ["start"])
    first.kill()
    platform.start_worker("1,1", CAPATAZ_VISIBILITY_TIMEOUT_SECONDS="6")
    eventually(lambda: notes(file) == ["start", "start", "end"])


def test_a_stop_kills_a_plain_task_after_the_grace_and_it_runs_again_at_once(platform, eventually):
    # So long that only what the stopping worker itself puts back can come again.
    options = {"CAPATAZ_VISIBILITY_TIMEOUT_SECONDS": "3000"}
    first = platform.start_worker("1,1", CAPATAZ_SHUTDOWN_GRACE_SECONDS="1", **options)
    file = f"plain-{uuid.uuid4().hex}.log"
    plain_record.delay(file, 2 * PATIENCE)
    eventually(lambda: notes(file) == ["start"])
    first.popen.terminate()
    assert first.popen.wait(timeout=PATIENCE) == 0
    assert Worker.objects.get(pid=first.popen.pid).state == "stopped"
    platform.start_worker("1,1", **options)
    eventually(lambda: notes(file) == ["start", "start"])


def test_a_plain_task_that_lasts_three_visibility_timeouts_runs_once(platform, eventually):
    options = {"CAPATAZ_VISIBILITY_TIMEOUT_SECONDS": "5"}
    platform.start_worker("1,1", **options)
    platform.start_worker("1,1", **options)
    file = f"plain-{uuid.uuid4().hex}.log"
    result = plain_record.delay(file, 16)
    eventually(lambda: result.state == "SUCCESS")
    assert notes(file) == ["start", "end"]


def test_a_purge_is_healed(platform, records, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    worker.signal(19)  # stopped: what is released stays in Redis
    records.submit(5)
    eventually(lambda: Task.objects.filter(released_at__isnull=False).count() >= 1)
    celery("purge", "-f")
    worker.signal(18)
    eventually(records.all_succeeded)
    records.check()


def test_handlers_refuse_a_pool_that_cannot_run_them(platform):
    process = platform.start_worker("1,1", options=("-P", "solo"), wait=False)
    assert process.popen.wait(timeout=PATIENCE) != 0
    assert "handlers run on the prefork pool" in process.log.read_text()


def test_eager_mode_runs_inline(transactional_db):
    current_app.conf.task_always_eager = True
    try:
        result = current_app.tasks["demo.compute"].delay(n=10)
        assert result.ready()
        assert result.get() == {"result": 55}
    finally:
        current_app.conf.task_always_eager = False
    assert Task.objects.count() == 0
    assert settings.CELERY_TASK_SERIALIZER == "json"


def test_nothing_of_a_payload_is_ever_in_redis(running, eventually, broker):
    canary = f"canary-{uuid.uuid4().hex}"
    spy = broker.monitor()
    caught = []
    with spy:
        task = submit("demo.echo", {"message": canary})
        deadline = time.monotonic() + PATIENCE
        while not any(str(task.pk) in command for command in caught):
            assert time.monotonic() < deadline
            caught.append(str(spy.next_command()))
        eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")
        broker.set("the-end", "1")
        while not any("the-end" in command for command in caught):
            caught.append(str(spy.next_command()))
    assert not any(canary in command for command in caught)
