"""Whatever Redis does, no task is lost and nobody waits for it."""

import json
import os
import signal
import socket
import statistics
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from capataz import pointer
from capataz.lifecycle.dispatch import EPOCH_KEY
from capataz.lifecycle.submission import submit
from capataz.models import Task, Worker
from capataz.priority import REDIS_STEPS
from tests.records import state
from tests.workload import notes


@pytest.fixture
def silent_server():
    """A server that accepts connections and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []
    threading.Thread(target=lambda: _accept(listener, accepted), daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def _accept(listener, accepted):
    while True:
        try:
            accepted.append(listener.accept())
        except OSError:
            return


def test_a_submission_does_not_wait_for_a_redis_that_never_answers(transactional_db, silent_server, settings):
    settings.REDIS_URL = settings.CELERY_BROKER_URL = f"redis://127.0.0.1:{silent_server}/0"
    took = []
    for _ in range(30):
        began = time.monotonic()
        submit("demo.echo", {"message": "x"})
        took.append(time.monotonic() - began)
    # Not a benchmark: a single wait for a time-out of Redis would cost a second.
    assert statistics.median(took) < 0.5


def test_what_was_submitted_without_redis_runs_when_it_is_back(platform, servers, eventually):
    servers.redis.stop()
    task = submit("demo.echo", {"message": "patience"})
    platform.start_dispatcher()
    platform.start_worker(wait=False)
    assert state(task) == "queued"
    servers.redis.start()
    servers.redis.wait_until_ready()
    eventually(lambda: state(task) == "succeeded")


def test_a_flush_loses_nothing(platform, records, eventually, broker):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    records.submit(300, seconds=0.01)
    for _ in range(5):
        done = Task.objects.filter(pk__in=records.ids, state="succeeded").count()
        broker.flushall()
        eventually(
            lambda done=done: Task.objects.filter(pk__in=records.ids, state="succeeded").count() > done
        )
    eventually(records.all_succeeded)
    records.check()


@pytest.mark.parametrize("step", REDIS_STEPS)
def test_another_key_with_a_queues_name_is_moved_aside(platform, eventually, broker, step):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    key = pointer.queue_key("email", step)
    broker.set(key, "mine")
    eventually(lambda: not broker.exists(key))
    [aside] = broker.keys(f"capataz:aside:{key}:*")
    assert broker.get(aside) == b"mine"
    task = submit("demo.echo", {"message": "x"}, queue="email")
    eventually(lambda: state(task) == "succeeded")
    assert worker.popen.poll() is None


def test_another_key_with_the_epochs_name_is_replaced(platform, eventually, broker):
    broker.rpush(EPOCH_KEY, "x")
    platform.start_dispatcher()
    platform.start_worker("1,1")
    task = submit("demo.echo", {"message": "x"})
    eventually(lambda: state(task) == "succeeded")
    assert broker.type(EPOCH_KEY) == b"string"


def test_the_dispatcher_goes_on_with_its_house_while_redis_hangs(platform, servers, eventually):
    platform.start_dispatcher()
    first = submit("demo.echo", {"message": "x"}, expires_at=timezone.now() + timedelta(seconds=1))
    eventually(lambda: state(first) == "expired")
    os.kill(servers.redis.child.pid, signal.SIGSTOP)
    try:
        platform.start_worker(wait=False)  # there would be somebody to release to
        late = submit("demo.echo", {"message": "x"}, expires_at=timezone.now() + timedelta(seconds=3))
        due = submit("demo.echo", {"message": "x"}, delay=1)
        eventually(lambda: state(late) == "expired" and state(due) == "queued")
    finally:
        os.kill(servers.redis.child.pid, signal.SIGCONT)
    eventually(lambda: state(due) == "succeeded")


def test_a_worker_waits_while_redis_refuses(platform, eventually, broker):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    broker.delete("_kombu.binding.default")
    broker.set("_kombu.binding.default", "in the way of kombu's own bookkeeping")
    broker.client_kill_filter(_type="normal", skipme=True)
    eventually(lambda: "Redis refuses" in worker.log.read_text())
    task = submit("demo.echo", {"message": "x"})
    broker.delete("_kombu.binding.default")
    eventually(lambda: state(task) == "succeeded")
    assert worker.popen.poll() is None


def test_limits_hold_and_nobody_is_called_dead_while_redis_is_away(
    platform, servers, records, eventually, tmp_path
):
    platform.start_dispatcher()
    worker = platform.start_worker("3,3")
    hanging = submit("testing.misbehave", {"how": "hang"})
    file = f"away-{uuid.uuid4().hex}.log"
    long = submit("testing.gate", {"file": file, "gate": str(tmp_path / "gate")})
    eventually(lambda: state(hanging) == "running" and state(long) == "running")
    servers.redis.stop()

    eventually(lambda: state(hanging) == "dead")  # its hard limit is 2 s, and Redis is not there
    records.submit(50)
    time.sleep(10)  # long enough for the stock consumer to have given up several times
    (tmp_path / "gate").touch()
    eventually(lambda: state(long) == "succeeded")
    assert Worker.objects.get(pid=worker.pid).state == "running"
    servers.redis.start()
    servers.redis.wait_until_ready()

    eventually(records.all_succeeded)
    records.check()
    assert len(notes(file)) == 2
    assert Worker.objects.count() == 1


def test_a_worker_that_loses_redis_keeps_none_of_its_tasks_stuck(
    platform, servers, records, eventually, restart_redis
):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    records.submit(200, seconds=0.05)
    for share in (20, 60, 100):
        eventually(
            lambda share=share: Task.objects.filter(pk__in=records.ids, state="succeeded").count() > share
        )
        restart_redis()
    eventually(records.all_succeeded)
    records.check()
    eventually(lambda: not Task.objects.filter(worker_id__isnull=False).exists())


def forged_messages(task_ids):
    """Messages that nobody should ever have to take, in every shape that has made a stock worker exit."""
    good = json.loads(pointer.encode("demo.echo", "default", 4, task_ids))
    yield b""
    yield b"not json"
    yield b"\xff\xfe\x00"
    yield b"[1,2]"
    yield b"null"
    yield b"{}"
    yield b'"text"'
    yield b"[" * 100_000
    wrong: Any
    for key in ("body", "headers", "properties", "content-type", "content-encoding"):
        yield json.dumps({name: value for name, value in good.items() if name != key}).encode()
        for wrong in (None, [], 7, {"a": 1}):
            yield json.dumps({**good, key: wrong}).encode()
    for header in ("task", "id", "lang", pointer.HEADER):
        for wrong in (None, ["x"], 7, {}, "", "x" * 100_000):
            yield json.dumps({**good, "headers": {**good["headers"], header: wrong}}).encode()
    for ids in (["x"], [None], [["a"]], ["0" * 36], [str(uuid.uuid4())] * 100_000, ["' OR 1=1 --"], [1e400]):
        yield json.dumps({**good, "headers": {**good["headers"], pointer.HEADER: ids}}).encode()
    for name in ("delivery_tag", "delivery_info", "priority", "body_encoding"):
        for wrong in (None, [], "x", {"exchange": None, "routing_key": 3}):
            yield json.dumps({**good, "properties": {**good["properties"], name: wrong}}).encode()
    unknown = {**good["headers"], "task": "no.such.type"}
    yield json.dumps({**good, "headers": unknown}).encode()
    plain = {key: value for key, value in unknown.items() if key != pointer.HEADER}
    yield json.dumps({**good, "headers": plain}).encode()
    yield json.dumps(
        {**good, "headers": {**plain, "task": "tests.workload.plain_add"}, "body": "{{{"}
    ).encode()
    for limits in ([None, "x"], ["x", None], "12", [1], [-1, 2], [True, 1], [1e400, 1], {"a": 1}, [[1], 2]):
        told = {**plain, "task": "tests.workload.plain_add", "timelimit": limits}
        yield json.dumps({**good, "headers": told, "body": "[[1, 2], {}, {}]"}).encode()
    # Older protocols have their limits in the body, and this one's header is no pointer's.
    legacy = {"task": "tests.workload.plain_add", "id": "1", "args": [1, 2], "kwargs": {}}
    for headers in ({}, {"task": "tests.workload.plain_add"}, {**plain, "task": "tests.workload.plain_add"}):
        body = json.dumps({**legacy, "timelimit": ["x", "x"]})
        yield json.dumps({**good, "headers": headers, "body": body}).encode()
    disguised = {**plain, "task": "tests.workload.plain_add", pointer.HEADER: [], "timelimit": ["x", "x"]}
    yield json.dumps({**good, "headers": disguised, "body": "[[1, 2], {}, {}]"}).encode()
    pickled = {**good, "content-type": "application/x-python-serialize", "content-encoding": "binary"}
    yield json.dumps({**pickled, "headers": {**plain, "task": "tests.workload.plain_add"}}).encode()
    yield json.dumps({**good, "headers": {**plain, "task": "demo.echo"}}).encode()


def test_forged_messages_change_nothing_and_stop_nobody(platform, records, eventually, broker):
    platform.start_dispatcher()
    worker = platform.start_worker("2,2")
    waiting = submit("demo.echo", {"message": "later"}, delay=3600)
    finished = submit("demo.echo", {"message": "now"})
    eventually(lambda: state(finished) == "succeeded")
    finished_at = Task.objects.get(pk=finished.pk).finished_at
    forged = list(forged_messages([waiting.pk, finished.pk, uuid.uuid4()]))
    pipeline = broker.pipeline()
    for number in range(10_000):
        pipeline.lpush(pointer.queue_key("default", (number % 6) * 2), forged[number % len(forged)])
        if number % 500 == 0:
            pipeline.execute()
    pipeline.execute()

    records.submit(20)
    eventually(records.all_succeeded)
    eventually(lambda: not any(broker.llen(pointer.queue_key("default", step)) for step in range(0, 11, 2)))
    assert state(waiting) == "scheduled"
    assert Task.objects.get(pk=finished.pk).finished_at == finished_at
    assert Task.objects.count() == 22
    assert worker.is_alive()
    records.check()
    assert len([line for line in records.lines() if line[0] == "start"]) == 20


def test_duplicates_of_real_messages_start_nothing_twice(platform, records, eventually, broker):
    platform.start_dispatcher()
    records.submit(200)
    platform.start_worker("2,2")

    def copy():
        for step in range(0, 11, 2):
            key = pointer.queue_key("default", step)
            for message in broker.lrange(key, 0, -1):
                broker.lpush(key, message)

    while not records.all_succeeded():
        if broker.llen(pointer.queue_key("default", 4)) < 2000:
            copy()
        time.sleep(0.05)
    records.check()
    assert len([line for line in records.lines() if line[0] == "start"]) == 200


def test_a_task_for_the_future_is_never_in_redis_before_its_time(platform, eventually, broker):
    platform.start_dispatcher()
    soon = submit("demo.echo", {"message": "soon"}, delay=3)
    later = submit("demo.echo", {"message": "later"}, delay=7200)
    seen_early = False
    while state(soon) == "scheduled":
        seen_early = seen_early or bool(broker.keys("default*"))
    assert not seen_early
    platform.start_worker()
    eventually(lambda: state(soon) == "succeeded")
    assert state(later) == "scheduled"
    Task.objects.filter(pk=later.pk).update(run_at=soon.created_at)
    eventually(lambda: state(later) == "succeeded")
    soon.refresh_from_db()
    assert (soon.started_at - soon.created_at).total_seconds() >= 3


def test_plain_tasks_survive_the_death_of_redis_under_them(platform, eventually, restart_redis):
    from tests.workload import plain_record

    platform.start_dispatcher()
    worker = platform.start_worker("2,2", CAPATAZ_VISIBILITY_TIMEOUT_SECONDS="6")
    file = f"plain-{uuid.uuid4().hex}.log"
    result = plain_record.delay(file, 4)
    eventually(lambda: notes(file))
    restart_redis()
    eventually(lambda: result.state == "SUCCESS")
    assert worker.is_alive()
    after = submit("demo.echo", {"message": "x"})
    eventually(lambda: state(after) == "succeeded")
    assert settings.CELERY_TASK_ACKS_LATE
