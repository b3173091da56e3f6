"""Capataz is still Celery: its command line, its signals, its plain tasks, and Flower's view."""

import json
import os
import subprocess
import sys
import time
import uuid

import pytest
from celery import current_app
from celery.result import AsyncResult
from django.conf import settings
from django_celery_results.models import TaskResult

from capataz.errors import InvalidSubmission
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests.processes import PATIENCE, ROOT, database_environment
from tests.workload import notes, plain_add, plain_record


def state(task):
    return Task.objects.get(pk=task.pk).state


def celery(*arguments, check=True):
    """What a user gets from typing ``celery -A capataz ...``."""
    done = subprocess.run(  # noqa: PLW1510 - the caller decides what a failure means
        [sys.executable, "-m", "celery", "-A", "capataz", *arguments],
        cwd=ROOT,
        env={**os.environ, **database_environment()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def running(platform):
    platform.start_dispatcher()
    platform.worker = platform.start_worker("2,2")
    return platform


def test_plain_tasks_run_with_django_celery_results(running, eventually):
    result = plain_add.delay(2, 3)
    eventually(lambda: result.state == "SUCCESS")
    assert result.get() == 5
    assert TaskResult.objects.get(task_id=result.id).status == "SUCCESS"
    assert Task.objects.count() == 0


def test_plain_tasks_can_be_allowed_by_name(platform, eventually):
    platform.start_worker("1,1", CAPATAZ_PLAIN_TASKS="tests.workload.plain_add")
    file = f"allowed-{uuid.uuid4().hex}.log"
    plain_record.delay(file, 0)
    allowed = plain_add.delay(2, 3)
    eventually(lambda: allowed.state == "SUCCESS")
    assert notes(file) == []


def test_async_result_answers_for_handlers_too(running, eventually):
    handler = current_app.tasks["demo.echo"]
    result = handler.delay(message="hola")
    eventually(lambda: result.state == "SUCCESS")
    assert AsyncResult(result.id).get(timeout=PATIENCE) == Task.objects.get(pk=result.id).result
    failing = current_app.tasks["testing.misbehave"].delay(how="discard")
    eventually(lambda: failing.state == "FAILURE")
    with pytest.raises(Exception, match="not worth it"):
        failing.get(timeout=PATIENCE)
    waiting = handler.apply_async(kwargs={"message": "later"}, countdown=3600)
    assert waiting.state == "PENDING"
    assert Task.objects.get(pk=waiting.id).state == "scheduled"


def test_celery_call_of_a_handler_leaves_a_row(running, eventually):
    done = celery("call", "demo.echo", "--kwargs", json.dumps({"message": "by hand"}))
    task = Task.objects.get(pk=uuid.UUID(done.stdout.strip().splitlines()[-1]))
    assert task.payload == {"message": "by hand"}
    eventually(lambda: state(task) == "succeeded")


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


def test_a_plain_task_that_lasts_three_visibility_timeouts_runs_once(platform, eventually):
    options = {"CAPATAZ_VISIBILITY_TIMEOUT_SECONDS": "5"}
    platform.start_worker("1,1", **options)
    platform.start_worker("1,1", **options)
    file = f"plain-{uuid.uuid4().hex}.log"
    result = plain_record.delay(file, 16)
    eventually(lambda: result.state == "SUCCESS")
    assert notes(file) == ["start", "end"]


def test_inspect_sees_single_tasks_and_status_sees_workers(running, eventually, tmp_path):
    gate = tmp_path / "gate"
    task = submit("testing.gate", {"file": "inspected.log", "gate": str(gate)})
    eventually(lambda: state(task) == "running")

    active = json.loads(celery("inspect", "active", "--json").stdout)
    assert [each["id"] for tasks in active.values() for each in tasks] == [str(task.pk)]
    assert "inspected.log" not in json.dumps(active)  # payloads stay in PostgreSQL
    assert "1 node online" in celery("status").stdout
    assert "demo.echo" in celery("inspect", "registered").stdout
    assert celery("inspect", "ping").returncode == 0
    celery("inspect", "stats")
    gate.touch()
    eventually(lambda: state(task) == "succeeded")
    stats = json.loads(celery("inspect", "stats", "--json").stdout)
    assert [each["total"].get("testing.gate") for each in stats.values()] == [1]


def test_control_revoke_terminate_stops_a_running_task(running, eventually, tmp_path):
    task = submit("testing.gate", {"file": "revoked.log", "gate": str(tmp_path / "never")})
    eventually(lambda: state(task) == "running")
    celery("control", "terminate", "SIGKILL", str(task.pk), check=False)
    eventually(lambda: state(task) == "cancelled")


def test_control_revoke_cancels_whatever_the_state(running, eventually, tmp_path):
    started = submit("testing.gate", {"file": "revoked.log", "gate": str(tmp_path / "never")})
    waiting = submit("demo.echo", {"message": "x"}, delay=3600)
    eventually(lambda: state(started) == "running")
    celery("control", "revoke", str(started.pk), str(waiting.pk))
    eventually(lambda: state(started) == state(waiting) == "cancelled")


def test_control_refuses_what_it_could_not_keep(running):
    assert "is a handler" in celery("control", "rate_limit", "demo.echo", "1/s").stdout
    assert "is a handler" in celery("control", "time_limit", "demo.echo", "1", "2").stdout
    assert "new rate limit set" in celery("control", "rate_limit", "tests.workload.plain_add", "9/s").stdout


def test_events_flow_for_single_tasks_under_their_types(running, eventually):
    dump = running.start("events", [sys.executable, "-m", "celery", "-A", "capataz", "events", "--dump"])
    celery("control", "enable_events")
    eventually(lambda: "heartbeat" in dump.log.read_text())
    task = submit("demo.echo", {"message": "watched"})
    wanted = [f"task received: demo.echo({task.pk})", f"task started: demo.echo({task.pk})"]
    wanted.append(f"task succeeded: demo.echo({task.pk})")
    eventually(lambda: all(line in dump.log.read_text() for line in wanted))
    assert "watched" not in dump.log.read_text()


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
        assert current_app.tasks["demo.compute"].delay(n=10).get() == {"result": 55}
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
        eventually(lambda: state(task) == "succeeded")
        broker.set("the-end", "1")
        while not any("the-end" in command for command in caught):
            caught.append(str(spy.next_command()))
    assert not any(canary in command for command in caught)
