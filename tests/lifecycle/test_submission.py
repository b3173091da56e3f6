"""Submission: what is accepted exists, what is refused leaves nothing, and every fault is named."""

import contextlib
import os
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from psycopg import pq

from capataz import database, handlers
from capataz.database import database_now
from capataz.errors import Conflict, InvalidSubmission
from capataz.lifecycle.submission import MAX_DELAY, Submission, known_queues, submit, submit_many
from capataz.models import Task
from capataz.states import State
from tests import embedded_servers
from tests.lifecycle.stage import StagedWorker, together

pytestmark = pytest.mark.django_db
committed = pytest.mark.django_db(transaction=True)

QUERY = re.compile(r"^F\t\d+\t(?:Parse|Query)\t(.*?)(?=^[FB]\t)", re.MULTILINE | re.DOTALL)


def many(count: int, **options: Any) -> list[Submission]:
    return [Submission(type="demo.echo", data={"message": number}, **options) for number in range(count)]


def faults_of(*submissions: Submission) -> dict[str, str]:
    with pytest.raises(InvalidSubmission) as caught:
        submit_many(submissions)
    return {fault.pointer: fault.code for fault in caught.value.faults}


def faults_with(**options: Any) -> dict[str, str]:
    return faults_of(Submission(type="demo.echo", **options))


@contextlib.contextmanager
def frozen_redis() -> Iterator[None]:
    """Redis accepts connections and never answers."""
    server = embedded_servers.servers().redis
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.child.pid, signal.SIGCONT)


@contextlib.contextmanager
def statements(folder: Path) -> Iterator[Callable[[str], list[str]]]:
    """The statements that this connection sends meanwhile, by what they contain: as libpq saw them go."""
    with (folder / "protocol").open("w+") as file:
        protocol = database.driver().pgconn
        protocol.trace(file.fileno())
        protocol.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        yield lambda part: [
            query for query in QUERY.findall((folder / "protocol").read_text()) if part in query
        ]
        protocol.untrace()


# What is accepted.


def test_a_submitted_task_waits_with_its_payload_and_its_handlers_policy() -> None:
    task = submit("demo.fail", {"times": 2})
    known = handlers.find("demo.fail")
    assert (task.state, task.payload, task.queue) == (State.QUEUED, {"times": 2}, known.queue)
    assert (task.priority, task.max_attempts, task.attempts) == (known.priority, known.retry.attempts, 0)
    assert task.released_at is None


def test_what_the_caller_says_goes_before_the_handlers_policy() -> None:
    task = submit(
        "demo.echo", queue="email", priority="alta", max_attempts=7, time_limit=9, soft_time_limit=8
    )
    assert (task.queue, task.priority, task.max_attempts) == ("email", 8, 7)
    assert (task.time_limit, task.soft_time_limit) == (9, 8)


def test_a_rollback_leaves_nothing_behind() -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        submit("demo.echo")
        submit_many(many(3))
        raise ZeroDivisionError
    assert not Task.objects.exists()


@committed
def test_nobody_sees_a_task_before_its_submitter_commits(worker: StagedWorker) -> None:
    with transaction.atomic():
        submit("demo.echo")
        assert worker.connection.execute("SELECT count(*) FROM capataz_task").fetchone() == (0,)
    assert worker.connection.execute("SELECT count(*) FROM capataz_task").fetchone() == (1,)


@committed
def test_five_thousand_tasks_are_one_statement(tmp_path: Path) -> None:
    with statements(tmp_path) as sent:
        ids = submit_many(many(5000))
    assert len(sent("INSERT INTO capataz_task")) == 1
    assert len(sent("capataz_task")) == 1
    assert Task.objects.count() == len(set(ids)) == 5000


def test_ids_come_back_in_the_order_of_the_submissions() -> None:
    ids = submit_many([Submission(type="demo.echo", data={"message": n}, key=f"k{9 - n}") for n in range(10)])
    messages = {task.pk: task.payload["message"] for task in Task.objects.all()}
    assert [messages[each] for each in ids] == list(range(10))


def test_ids_sort_by_age() -> None:
    ids = submit_many(many(100))
    assert ids == sorted(ids)


def test_nothing_is_accepted_when_nothing_is_submitted() -> None:
    assert submit_many([]) == []


@committed
def test_a_submission_needs_no_redis() -> None:
    with frozen_redis():
        task = submit("demo.echo")
    assert Task.objects.get(pk=task.pk).state == State.QUEUED


@committed
def test_celerys_own_calls_need_no_redis_either() -> None:
    with frozen_redis():
        result = handlers.find("demo.echo").delay(message="hello")
    assert Task.objects.get(pk=result.id).payload == {"message": "hello"}


@committed
def test_a_dispatcher_that_cannot_be_woken_does_not_fail_a_submission(worker: StagedWorker) -> None:
    """The session ends between the commit and the NOTIFY that would follow it."""

    def end_this_session() -> None:
        pid = connection.connection.info.backend_pid
        worker.connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    with transaction.atomic():
        transaction.on_commit(end_this_session)
        [task_id] = submit_many(many(1))
    connection.close()
    assert Task.objects.filter(pk=task_id).exists()


# Times.


def test_a_delay_counts_from_the_databases_clock() -> None:
    before = database_now()
    task = submit("demo.echo", delay=600)
    assert task.state == State.SCHEDULED
    assert before <= task.run_at - timedelta(seconds=600) <= database_now()


def test_a_task_for_the_future_is_scheduled_for_exactly_then() -> None:
    when = database_now() + timedelta(hours=1)
    task = submit("demo.echo", run_at=when)
    assert (task.state, task.run_at) == (State.SCHEDULED, when)


@pytest.mark.parametrize("late", [timedelta(), timedelta(days=400)])
def test_a_task_whose_time_has_passed_is_queued_at_once(late: timedelta) -> None:
    task = submit("demo.echo", run_at=database_now() - late)
    assert (task.state, task.run_at) == (State.QUEUED, None)


def test_no_delay_is_no_delay() -> None:
    assert submit("demo.echo", delay=0).state == State.QUEUED


def test_a_deadline_is_kept_with_the_task() -> None:
    when = database_now() + timedelta(minutes=5)
    assert submit("demo.echo", expires_at=when).expires_at == when


@pytest.mark.parametrize("name", ["run_at", "expires_at"])
def test_a_time_without_a_zone_is_a_fault(name: str) -> None:
    pointers = {"run_at": "runAt", "expires_at": "expiresAt"}
    assert faults_with(**{name: datetime(2030, 1, 1)}) == {pointers[name]: "no_time_zone"}


@pytest.mark.parametrize("name", ["run_at", "expires_at"])
@pytest.mark.parametrize(
    "when",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
    ],
    ids=["after year 9999", "before year 1"],
)
def test_a_time_that_python_could_not_read_back_is_a_fault(name: str, when: datetime) -> None:
    assert set(faults_with(**{name: when}).values()) == {"out_of_range"}
    assert list(Task.objects.all()) == []


def test_celerys_expires_in_seconds_becomes_a_deadline() -> None:
    before = database_now()
    result = handlers.find("demo.echo").apply_async(kwargs={}, expires=60)
    expires_at = Task.objects.get(pk=result.id).expires_at
    assert before < expires_at < database_now() + timedelta(seconds=61)


def test_a_deadline_in_seconds_counts_from_the_databases_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitter's own clock may be wrong."""
    monkeypatch.setattr("django.utils.timezone.now", lambda: datetime(2001, 1, 1, tzinfo=UTC))
    result = handlers.find("demo.echo").apply_async(kwargs={}, expires=60)
    assert Task.objects.get(pk=result.id).expires_at > database_now()


def test_celerys_countdown_waits_in_postgresql() -> None:
    result = handlers.find("demo.echo").apply_async(kwargs={}, countdown=60)
    assert Task.objects.get(pk=result.id).state == State.SCHEDULED


def test_celerys_expires_that_is_no_time_is_a_fault() -> None:
    with pytest.raises(InvalidSubmission, match="expires"):
        handlers.find("demo.echo").apply_async(kwargs={}, expires="whenever")


# What is refused.


def test_one_bad_submission_refuses_all_of_them() -> None:
    faults_of(*many(2), Submission(type="demo.sleep", data={"seconds": -1}))
    assert not Task.objects.exists()


def test_every_fault_of_every_submission_is_named_with_its_place() -> None:
    wrong = [
        Submission(type="demo.echo"),
        Submission(type="nope"),
        Submission(type="demo.sleep", data={"seconds": "long", "extra": 1}, priority=11),
        Submission(type="demo.echo", delay=-1, max_attempts=0, time_limit=0, queue="nowhere", key=""),
    ]
    assert faults_of(*wrong) == {
        "tasks/1/type": "unknown_type",
        "tasks/2/data/seconds": "float_parsing",
        "tasks/2/data/extra": "extra_forbidden",
        "tasks/2/priority": "out_of_range",
        "tasks/3/delay": "out_of_range",
        "tasks/3/maxAttempts": "out_of_range",
        "tasks/3/timeLimit": "out_of_range",
        "tasks/3/queue": "unknown_queue",
        "tasks/3/id": "bad_id",
    }


def test_the_faults_of_a_single_submission_carry_no_number() -> None:
    assert faults_with(data={"unknown": 1}) == {"data/unknown": "extra_forbidden"}


def test_an_unknown_queue_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSubmission) as caught:
        submit("demo.echo", queue="nowhere")
    assert all(name in str(caught.value) for name in known_queues())


@pytest.mark.parametrize("delay", [-0.001, float("nan"), float("inf"), MAX_DELAY * 1.01])
def test_a_delay_out_of_range_is_a_fault(delay: float) -> None:
    assert faults_with(delay=delay) == {"delay": "out_of_range"}


@pytest.mark.parametrize("key", ["", "a" * 256, "line\nbreak", "nul\x00", "\ud800", "\u200b"])
def test_a_key_that_cannot_be_shown_is_a_fault(key: str) -> None:
    assert faults_with(key=key) == {"id": "bad_id"}


@pytest.mark.parametrize("limit", [0, -1, float("nan"), 24 * 3600 + 1])
def test_a_time_limit_out_of_range_is_a_fault(limit: float) -> None:
    faults = faults_with(time_limit=limit, soft_time_limit=limit)
    assert faults == {"timeLimit": "out_of_range", "softTimeLimit": "out_of_range"}


@pytest.mark.parametrize("letter", ["a", "ñ", "😀"])
def test_a_payload_above_the_limit_is_refused_by_its_bytes(letter: str, settings: Any) -> None:
    settings.MAX_PAYLOAD = 2000
    fits = 1900 // len(letter.encode())
    assert submit("demo.echo", {"message": letter * fits}).payload["message"][0] == letter
    assert faults_with(data={"message": letter * 2 * fits}) == {"data": "too_large"}


def test_a_flood_of_faults_is_cut() -> None:
    with pytest.raises(InvalidSubmission) as caught:
        submit_many([Submission(type="nope")] * 5000)
    assert len(caught.value.faults) == 100


# Keys.


def test_the_same_key_with_the_same_payload_is_the_same_task() -> None:
    first = submit("demo.echo", {"message": 1}, key="order-7")
    assert submit("demo.echo", {"message": 1}, key="order-7") == first
    assert Task.objects.count() == 1


@pytest.mark.parametrize(
    "message", [1.5, 1e300, -0.0, 10**30, "text", [1, {"b": 1, "a": 2}], {"ñ": None}, 0.1 + 0.2, 5e-324]
)
def test_a_repeated_submission_is_recognised_whatever_its_payload(message: Any) -> None:
    first = submit("demo.echo", {"message": message}, key="again")
    assert submit("demo.echo", {"message": message}, key="again") == first


def test_the_same_key_with_another_payload_is_a_conflict() -> None:
    submit("demo.echo", {"message": 1}, key="order-7")
    with pytest.raises(Conflict, match="order-7"):
        submit("demo.echo", {"message": 2}, key="order-7")


def test_the_same_key_with_another_type_is_a_conflict() -> None:
    submit("demo.echo", {}, key="order-7")
    with pytest.raises(Conflict):
        submit("demo.sleep", {}, key="order-7")


def test_a_conflict_refuses_everything_that_came_with_it() -> None:
    submit("demo.echo", {"message": 1}, key="taken")
    with pytest.raises(Conflict):
        submit_many([*many(3), Submission(type="demo.echo", data={"message": 2}, key="taken")])
    assert Task.objects.count() == 1


def test_new_and_repeated_submissions_can_come_together() -> None:
    old = submit("demo.echo", {"message": 0}, key="old")
    ids = submit_many([*many(2), Submission(type="demo.echo", data={"message": 0}, key="old")])
    assert ids[2] == old.pk
    assert Task.objects.count() == 3


def test_five_thousand_repeated_submissions_are_recognised_in_a_few_statements(tmp_path: Path) -> None:
    again = [Submission(type="demo.echo", data={"message": n}, key=f"key-{n}") for n in range(5000)]
    first = submit_many(again)
    with statements(tmp_path) as sent:
        assert submit_many(again) == first
    assert len(sent("capataz_task")) == 2  # the INSERT, and one look at what was there before


def test_a_key_that_is_a_uuid_becomes_the_id_of_the_task() -> None:
    chosen = uuid.uuid4()
    task = submit("demo.echo", key=str(chosen))
    assert (task.pk, task.key) == (chosen, None)
    assert submit("demo.echo", key=str(chosen)) == task
    with pytest.raises(Conflict):
        submit("demo.echo", {"message": 1}, key=str(chosen))


@pytest.mark.parametrize("key", ["order-7", "0198a000-0000-7000-8000-000000000001"])
def test_one_key_twice_in_one_call_is_one_task(key: str) -> None:
    one, other = submit_many([Submission(type="demo.echo", data={"message": 1}, key=key)] * 2)
    assert one == other
    assert Task.objects.count() == 1


@pytest.mark.parametrize("key", ["order-7", "0198a000-0000-7000-8000-000000000001"])
def test_one_key_for_two_payloads_in_one_call_is_a_conflict(key: str) -> None:
    with pytest.raises(Conflict):
        submit_many([Submission(type="demo.echo", data={"message": n}, key=key) for n in range(2)])
    assert not Task.objects.exists()


@committed
@pytest.mark.parametrize("make_key", ["key-{}", "0198a000-0000-7000-8000-{:012d}"])
def test_submissions_of_the_same_keys_in_opposite_order_do_not_deadlock(make_key: str) -> None:
    group = [Submission(type="demo.echo", key=make_key.format(n)) for n in range(200)]
    there, back = together(lambda: submit_many(group), lambda: submit_many(group[::-1]))
    assert there == back[::-1]
    assert Task.objects.count() == 200


@committed
def test_a_key_whose_first_submitter_rolls_back_is_free_for_the_next() -> None:
    def give_up() -> None:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            submit("demo.echo", {"message": 1}, key="wanted")
            raise ZeroDivisionError

    def insist() -> Task:
        return submit("demo.echo", {"message": 2}, key="wanted")

    for _ in range(10):
        Task.objects.all().delete()
        with contextlib.suppress(Conflict):  # for as long as the first one's row is there, uncommitted
            together(give_up, insist)
        assert [task.payload for task in Task.objects.all()] == [{"message": 2}]
