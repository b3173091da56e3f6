"""What Celery's own commands do to the tasks of handlers, typed by hand at a running platform."""

import json
import re
import sys
import uuid

import httpx
import pytest
import redis
from celery import current_app
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from celery.worker.control import Panel
from django.conf import settings
from django.core.management import call_command
from django_celery_results.models import TaskResult

from capataz.lifecycle.submission import submit
from capataz.models import Event, Task, Worker
from capataz.services.keepsakes import free_port
from tests.processes import ROOT, Processes, celery
from tests.records import state
from tests.workload import plain_add

pytestmark = pytest.mark.django_db(transaction=True)

LOGIN = ("somebody", "open-sesame")


@pytest.fixture
def _django_db_helper():
    """Not pytest-django's: that one empties the tables after every test, under the shared platform."""


@pytest.fixture(scope="module", autouse=True)
def running(django_db_setup, django_db_blocker):
    """One platform for all of these tests: a dispatcher and a worker with one to four children."""
    with django_db_blocker.unblock():
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            client.flushdb()
        call_command("setup_platform", verbosity=0)
        processes = Processes()
        try:
            processes.start_dispatcher()
            processes.start_worker("4,1")
            yield processes
        finally:
            processes.stop_all()
            call_command("flush", verbosity=0, interactive=False)


@pytest.fixture(autouse=True)
def logs_of_a_failure(running, request):
    yield
    if getattr(request.node, "failed", False):
        running.print_logs()


def shared_worker(running):
    """The row of the worker that all of these tests share."""
    return running.started[1].worker()


def events(kind):
    return [event.detail for event in Event.objects.filter(kind=kind).order_by("id")]


def gated(tmp_path, name="gate"):
    """A task that runs until its gate is opened, and the gate."""
    gate = tmp_path / name
    return submit("testing.gate", {"file": f"{uuid.uuid4().hex}.log", "gate": str(gate)}), gate


# call


def test_call_of_a_handler_leaves_a_row(eventually):
    done = celery("call", "demo.echo", "--kwargs", json.dumps({"message": "by hand"}))
    task = Task.objects.get(pk=uuid.UUID(done.stdout.strip().splitlines()[-1]))
    assert task.payload == {"message": "by hand"}
    eventually(lambda: state(task) == "succeeded")


def test_call_keeps_its_options():
    options = ["--eta", "2040-01-01T00:00:00", "--expires", "2041-01-01T00:00:00+00:00", "--queue", "email"]
    done = celery("call", "demo.echo", "--args", '[{"message": "later"}]', *options)
    task = Task.objects.get(pk=uuid.UUID(done.stdout.strip().splitlines()[-1]))
    assert (task.state, task.queue) == ("scheduled", "email")
    assert f"{task.run_at:%Y} {task.expires_at:%Y}" == "2040 2041"
    counted = celery("call", "demo.echo", "--kwargs", '{"message": "x"}', "--countdown", "3600")
    assert Task.objects.get(pk=counted.stdout.strip().splitlines()[-1]).state == "scheduled"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kwargs", '{"nonsense": 1}'], "nonsense"),
        (["--args", "[1, 2]"], "data: give the payload as keyword arguments"),
        (["--kwargs", '{"message": "x"}', "--queue", "nowhere"], "queue: must be one of"),
        (["--kwargs", '{"message": "x"}', "--routing-key", "elsewhere"], "routing_key: means nothing"),
        (["--kwargs", '{"message": "x"}', "--exchange", "elsewhere"], "exchange: means nothing"),
        (["--kwargs", '{"message": "x"}', "--serializer", "yaml"], "serializer: means nothing"),
    ],
)
def test_a_bad_call_is_refused_in_readable_words(arguments, says):
    before = Task.objects.count()
    done = celery(
        "call", "demo.compute" if "nonsense" in arguments[-1] else "demo.echo", *arguments, check=False
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "was not submitted" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert Task.objects.count() == before


def test_call_without_a_database_is_refused_in_readable_words():
    gone = {"DATABASE_URL": "postgresql://nobody:nothing@127.0.0.1:1/nowhere"}
    done = celery("call", "demo.echo", "--kwargs", '{"message": "x"}', check=False, environment=gone)
    assert done.returncode == 1
    assert "was not submitted: connection failed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# result, AsyncResult and TaskResult


def test_result_reads_the_row(eventually):
    task = submit("demo.compute", {"n": 10})
    assert "55" in celery("result", str(task.pk)).stdout
    failed = submit("testing.misbehave", {"how": "discard"})
    eventually(lambda: state(failed) == "dead")
    done = celery("result", str(failed.pk), check=False)
    assert done.returncode != 0
    assert "not worth it" in done.stderr
    assert "in misbehave" in celery("result", "--traceback", str(failed.pk)).stdout


def test_plain_tasks_run_with_django_celery_results(eventually):
    result = plain_add.delay(2, 3)
    eventually(lambda: result.state == "SUCCESS")
    assert result.get() == 5
    assert TaskResult.objects.get(task_id=result.id).status == "SUCCESS"
    assert not Task.objects.filter(type__contains="plain").exists()


def test_async_result_and_task_result_answer_for_handlers_too(running, eventually):
    result = current_app.tasks["demo.echo"].delay(message="hola")
    eventually(lambda: result.state == "SUCCESS")
    assert AsyncResult(result.id).get(timeout=5) == Task.objects.get(pk=result.id).result
    known = TaskResult.objects.get(task_id=result.id)
    assert (known.status, known.task_name) == ("SUCCESS", "demo.echo")
    assert known.worker == shared_worker(running).name
    assert "hola" not in f"{known.task_args} {known.task_kwargs}"
    failing = current_app.tasks["testing.misbehave"].delay(how="discard")
    eventually(lambda: failing.state == "FAILURE")
    assert "in misbehave" in failing.traceback
    assert "in misbehave" in TaskResult.objects.get(task_id=failing.id).traceback
    with pytest.raises(Exception, match="not worth it"):
        failing.get(timeout=5)
    waiting = current_app.tasks["demo.echo"].apply_async(kwargs={"message": "later"}, countdown=3600)
    assert waiting.state == "PENDING"
    assert Task.objects.get(pk=waiting.id).state == "scheduled"


# inspect, status, list, report


def test_inspect_sees_single_tasks_and_status_sees_workers(eventually, tmp_path):
    task, gate = gated(tmp_path)
    eventually(lambda: state(task) == "running")
    active = json.loads(celery("inspect", "active", "--json").stdout)
    assert [each["id"] for tasks in active.values() for each in tasks] == [str(task.pk)]
    assert str(gate) not in json.dumps(active)  # payloads stay in PostgreSQL
    asked = json.loads(celery("inspect", "query_task", str(task.pk), "--json").stdout)
    assert [found[str(task.pk)][0] for found in asked.values()] == ["active"]
    gate.touch()
    eventually(lambda: state(task) == "succeeded")
    stats = json.loads(celery("inspect", "stats", "--json").stdout)
    assert all(each["total"].get("testing.gate") for each in stats.values())
    assert "1 node online" in celery("status").stdout


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("ping", "pong"),
        ("registered", "demo.echo"),
        ("active_queues", "email"),
        ("conf", "broker_url"),
        ("report", "kombu"),
        ("reserved", "empty"),
        ("scheduled", "empty"),
        ("revoked", "empty"),
    ],
)
def test_inspect_answers(command, says):
    assert says in celery("inspect", command).stdout


def test_list_bindings_names_the_queues():
    assert "email" in celery("list", "bindings").stdout


def test_report_tells_versions_and_celerys_settings():
    said = celery("report").stdout
    assert "capataz.worker.transport:Transport" in said
    assert "broker_url: 'redis://:********@" in said
    assert "DATABASES" not in said


# control


@pytest.mark.parametrize("command", [["revoke"], ["terminate", "SIGKILL"]])
def test_control_cancels_whatever_the_state(eventually, tmp_path, command):
    started, _ = gated(tmp_path)
    waiting = submit("demo.echo", {"message": "x"}, delay=3600)
    eventually(lambda: state(started) == "running")
    assert "cancelled" in celery("control", *command, str(started.pk), str(waiting.pk)).stdout
    eventually(lambda: state(started) == state(waiting) == "cancelled")
    for task in (started, waiting):
        assert TaskResult.objects.get(task_id=str(task.pk)).status == "REVOKED"
        with pytest.raises(TaskRevokedError):
            AsyncResult(str(task.pk)).get(timeout=5)


def test_revoke_with_terminate_from_python_cancels(eventually, tmp_path):
    started, _ = gated(tmp_path)
    eventually(lambda: state(started) == "running")
    current_app.control.revoke(str(started.pk), terminate=True)
    eventually(lambda: state(started) == "cancelled")


def test_control_refuses_what_it_could_not_keep():
    assert "is a handler" in celery("control", "rate_limit", "demo.echo", "1/s").stdout
    assert "is a handler" in celery("control", "time_limit", "demo.echo", "1", "2").stdout
    assert "new rate limit set" in celery("control", "rate_limit", "tests.workload.plain_add", "9/s").stdout
    assert "not supported with autoscale" in celery("control", "pool_grow", "1").stdout
    assert "not supported with autoscale" in celery("control", "pool_shrink", "1").stdout


def test_a_consumer_is_cancelled_and_added_with_events(running, eventually):
    me = shared_worker(running)
    assert "pause the queue" in celery("control", "cancel_consumer", "images").stdout
    eventually(lambda: {"queue": "images"} in events("worker.consumerCancelled"))
    eventually(lambda: "images" not in Worker.objects.get(pk=me.pk).queues)
    assert "does not take from images" in celery("control", "cancel_consumer", "images").stdout
    celery("control", "add_consumer", "images")
    eventually(lambda: {"queue": "images"} in events("worker.consumerAdded"))
    eventually(lambda: "images" in Worker.objects.get(pk=me.pk).queues)


def test_the_bounds_of_the_pool_are_changed_with_an_event(running, eventually):
    me = shared_worker(running)
    assert "autoscale now max=6 min=3" in celery("control", "autoscale", "6", "3").stdout
    eventually(lambda: {"max": 6, "min": 3} in events("worker.autoscaled"))
    eventually(lambda: {"before": 1, "after": 3} in events("worker.scaled"))
    eventually(lambda: Worker.objects.get(pk=me.pk).max_concurrency == 6)
    assert "must be 0 <= min <= max" in celery("control", "autoscale", "2", "3").stdout
    assert "restart it with --autoscale=500" in celery("control", "autoscale", "500", "3").stdout
    assert "autoscale now max=4 min=1" in celery("control", "autoscale", "4", "1").stdout
    assert len(events("worker.autoscaled")) == 2


def test_a_pool_of_fixed_size_is_resized_with_an_event(running, eventually):
    command = [sys.executable, "-m", "celery", "-A", "capataz", "worker", "-n", "fixed@%h", "--concurrency=1"]
    worker = running.start("fixed", [*command, "-Q", "maintenance", "-l", "INFO"])
    running.wait_until_ready(worker)
    me, here = worker.worker(), ["-d", worker.worker().name]
    assert "fixed size" in celery("control", *here, "autoscale", "3", "1").stdout
    celery("control", *here, "pool_grow", "2")
    eventually(lambda: Worker.objects.get(pk=me.pk).max_concurrency == 3)
    celery("control", *here, "pool_shrink", "1")
    eventually(lambda: Worker.objects.get(pk=me.pk).max_concurrency == 2)
    assert "restart it with" in celery("control", *here, "pool_grow", "500").stdout
    scaled = Event.objects.filter(kind="worker.scaled", worker_id=me.pk).order_by("id")
    assert [event.detail for event in scaled] == [{"before": 1, "after": 3}, {"before": 3, "after": 2}]
    celery("control", *here, "shutdown", check=False)  # a worker that stops does not answer
    assert worker.popen.wait(timeout=60) == 0
    eventually(lambda: Worker.objects.get(pk=me.pk).state == "stopped")


# events and Flower


def test_events_flow_for_single_tasks_under_their_types(running, eventually):
    dump = running.start("events", [sys.executable, "-m", "celery", "-A", "capataz", "events", "--dump"])
    celery("control", "enable_events")
    eventually(lambda: "heartbeat" in dump.log.read_text())
    task = submit("demo.echo", {"message": "watched"})
    wanted = [f"task received: demo.echo({task.pk})", f"task started: demo.echo({task.pk})"]
    wanted.append(f"task succeeded: demo.echo({task.pk})")
    eventually(lambda: all(line in dump.log.read_text() for line in wanted))
    assert "watched" not in dump.log.read_text()
    celery("control", "disable_events")
    dump.stop()


def test_flower_applies_a_handler_or_is_refused(running, eventually):
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", "capataz", "flower", "--address=127.0.0.1"]
    running.start("flower", [*command, f"--port={port}"], FLOWER_BASIC_AUTH=":".join(LOGIN))
    flower = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=LOGIN, timeout=60)

    def is_up():
        try:
            return flower.get("/api/workers").status_code == 200
        except httpx.HTTPError:
            return False

    eventually(is_up, every=0.3)
    good = {"kwargs": {"message": "flower"}}
    for way in ("apply", "async-apply", "send-task"):
        answer = flower.post(f"/api/task/{way}/demo.echo", json=good)
        assert answer.status_code == 200, answer.text
        task = Task.objects.get(pk=answer.json()["task-id"])
        assert task.payload == {"message": "flower"}
        eventually(lambda task=task: state(task) == "succeeded")
    before = Task.objects.count()
    for way in ("apply", "async-apply", "send-task"):
        for bad in ({"args": [1, 2]}, {**good, "routing_key": "elsewhere"}, {**good, "queue": "nowhere"}):
            assert flower.post(f"/api/task/{way}/demo.echo", json=bad).status_code >= 400
    assert Task.objects.count() == before


# The page


def test_the_page_has_a_line_for_every_command():
    page = (ROOT / "docs" / "celery.md").read_text()
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", page))))
    commands = {"call", "result", "inspect", "control", "events", "list", "report", "purge", "status"}
    assert commands | {name for name, about in Panel.meta.items() if about.visible} <= named
