"""Uniqueness: one task for each key, decided by the database, whatever happens at once."""

import dataclasses
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from capataz import handlers
from capataz.database import database_now
from capataz.errors import Conflict, IllegalMove, InvalidSubmission
from capataz.flow import Fairness, Flow
from capataz.lifecycle import dispatch
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.replay import replay
from capataz.lifecycle.retry import retry
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Outcome, Task
from capataz.sql import statement
from capataz.states import State
from capataz.uniqueness import Debounce, Throttle, Unique
from tests.lifecycle.stage import StagedWorker, now, release, together

pytestmark = pytest.mark.django_db
committed = pytest.mark.django_db(transaction=True)

BY_MESSAGE = Unique(by=("payload.message",))
SECOND = timedelta(seconds=1)


def echo(message: Any = 1, **options: Any) -> Task:
    return submit("demo.echo", {"message": message}, **{"unique": BY_MESSAGE, **options})


def many(*messages: Any, **options: Any) -> list[Submission]:
    return [Submission(type="demo.echo", data={"message": message}, **options) for message in messages]


def pass_time(seconds: float) -> None:
    """All that has happened to tasks was so much earlier."""
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE capataz_task
                  SET created_at = created_at - %(ago)s * interval '1 second',
                      run_at = run_at - %(ago)s * interval '1 second',
                      unique_until = unique_until - %(ago)s * interval '1 second'""",
            {"ago": seconds},
        )


# Which task holds a key.


def test_a_second_submission_is_answered_with_the_task_that_is_there() -> None:
    first = echo()
    assert echo() == first
    assert echo(2) != first
    assert Task.objects.count() == 2


def test_reject_is_a_conflict_that_names_the_task() -> None:
    first = echo()
    with pytest.raises(Conflict) as caught:
        echo(unique=Unique(by=("payload.message",), mode="reject"))
    assert caught.value.holder == first.pk


def test_without_paths_the_whole_payload_counts() -> None:
    assert echo({"a": 1, "b": [2]}, unique=Unique()) == echo({"b": [2], "a": 1}, unique=Unique())
    assert echo({"a": 1}, unique=Unique()) != echo({"a": 2}, unique=Unique())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (100, 1e2, True),
        (0, -0.0, True),
        (1, "1", False),
        (1, True, False),
        (None, 0, False),
        (10, 1, False),
        (0.1, 0.10, True),
        ([1, 2], [12], False),
        ("é", "e\u0301", False),
        ({}, [], False),
    ],
)
def test_values_are_the_same_if_postgresql_says_so(one: Any, other: Any, same: bool) -> None:
    assert (echo(one) == echo(other)) is same


def test_a_path_leads_into_objects_and_lists_and_what_is_missing_is_null() -> None:
    unique = Unique(by=("payload.message.lines.1.sku",))
    first = echo({"lines": [{}, {"sku": "a"}], "at": 1}, unique=unique)
    assert echo({"lines": [{}, {"sku": "a"}], "at": 2}, unique=unique) == first
    missing = echo({"lines": []}, unique=unique)
    assert missing != first
    assert echo({"lines": [{}, {"sku": None}]}, unique=unique) == missing


def test_the_queue_may_count_too() -> None:
    unique = Unique(by=("payload.message", "queue"))
    assert echo(unique=unique) != echo(unique=unique, queue="email")


def test_a_key_that_is_given_counts_instead_of_the_payload() -> None:
    first = echo(1, unique=None, unique_key="report-7")
    assert echo(2, unique=None, unique_key="report-7") == first
    assert echo(2, unique=None, unique_key="report-8") != first
    assert submit("demo.sleep", {"seconds": 0}, unique_key="report-7") != first


@committed
@pytest.mark.parametrize(
    ("states", "ending", "is_free"),
    [
        ("waiting", None, True),
        ("unfinished", None, False),
        ("unfinished", State.SUCCEEDED, True),
        ("unfinished", State.DEAD, True),
        ("until_success", State.DEAD, False),
        ("until_success", State.SUCCEEDED, True),
        ("always", State.SUCCEEDED, False),
    ],
)
def test_a_key_is_free_as_soon_as_its_task_leaves_the_states(
    worker: StagedWorker, states: str, ending: State | None, is_free: bool
) -> None:
    unique = Unique(by=("payload.message",), states=states)
    first = echo(unique=unique)
    grants = worker.run(first)
    if ending:
        worker.end(grants, ending, Outcome.SUCCEEDED if ending == State.SUCCEEDED else Outcome.FAILED)
    assert (echo(unique=unique) != first) is is_free


@committed
def test_a_cancelled_and_an_expired_task_let_go_of_their_keys(session: Any) -> None:
    first = echo()
    cancel(first)
    second = echo(expires_at=database_now() - SECOND)
    assert second != first
    dispatch.expire(session)
    assert now(second).state == State.EXPIRED
    assert echo() not in (first, second)


def test_a_retry_of_a_task_whose_key_is_taken_is_refused_and_changes_nothing() -> None:
    first = echo()
    cancel(first)
    second = echo()
    with pytest.raises(IllegalMove, match="unique key"):
        retry(first)
    assert now(first).state == State.CANCELLED
    cancel(second)
    assert retry(first).state == State.QUEUED
    assert echo() == first


def test_a_replay_of_a_task_whose_key_is_taken_is_refused() -> None:
    policy = Unique(by=("payload.message",))
    handlers.find("demo.echo").__dict__["unique"] = policy
    try:
        first = submit("demo.echo", {"message": 1})
        cancel(first)
        second = submit("demo.echo", {"message": 1})
        with pytest.raises(IllegalMove, match=str(second.pk)):
            replay(now(first))
    finally:
        handlers.find("demo.echo").__dict__["unique"] = None


def test_celerys_calls_may_be_unique_by_an_option_or_a_header() -> None:
    echo_task = handlers.find("demo.echo")
    document = {"mode": "throttle", "periodMs": 60000}
    first = echo_task.apply_async(kwargs={"message": 1}, unique=document)
    assert echo_task.apply_async(kwargs={"message": 1}, headers={"unique": document}).id == first.id
    assert Task.objects.get(pk=first.id).unique_until is not None


def test_a_key_is_free_when_its_period_is_over() -> None:
    unique = Unique(by=("payload.message",), states="always", period=60)
    first = echo(unique=unique)
    pass_time(59)
    assert echo(unique=unique) == first
    pass_time(2)
    assert echo(unique=unique) != first


def test_a_task_without_a_policy_holds_no_key() -> None:
    task = submit("demo.echo", {"message": 1})
    assert (task.unique_key, task.unique_scope, task.unique_until) == (None, None, None)


# A client's id beside a unique key.


def test_a_clients_id_goes_before_the_unique_key() -> None:
    first = echo(key="order-7")
    assert echo(key="order-7") == first
    assert echo(key="order-8") == first
    with pytest.raises(Conflict, match="order-7"):
        echo(2, key="order-7")
    cancel(first)
    assert echo(key="order-7") == first


# Replace.


def test_replace_gives_the_waiting_task_the_new_payload_priority_and_time() -> None:
    unique = Unique(by=("payload.message.id",), mode="replace")
    first = echo({"id": 1, "v": 1}, unique=unique)
    when = database_now() + timedelta(hours=1)
    later = echo({"id": 1, "v": 2}, unique=unique, priority=9, run_at=when)
    assert later == first
    assert (later.payload["message"]["v"], later.priority) == (2, 9)
    assert (later.state, later.run_at) == (State.SCHEDULED, when)
    again = echo({"id": 1, "v": 3}, unique=unique)
    assert (again.pk, again.state, again.run_at) == (first.pk, State.QUEUED, None)


@committed
def test_a_replaced_payload_waits_in_the_lane_of_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    known = handlers.find("demo.echo")
    limited = dataclasses.replace(known, flow=Flow(fairness=Fairness(per="payload.message")))
    monkeypatch.setitem(handlers._registry, "demo.echo", limited)
    first = echo("ann", unique=Unique(mode="replace"), unique_key="key")
    assert first.lane == "demo.echo|message|ann"
    assert echo("bob", unique=Unique(mode="replace"), unique_key="key").pk == first.pk
    first.refresh_from_db()
    assert (first.payload["message"], first.lane) == ("bob", "demo.echo|message|bob")


def test_what_comes_after_the_release_is_a_task_of_its_own() -> None:
    unique = Unique(by=("payload.message.id",), mode="replace")
    first = echo({"id": 1, "v": 1}, unique=unique)
    release(first)
    second = echo({"id": 1, "v": 2}, unique=unique)
    assert second != first
    assert now(first).payload["message"]["v"] == 1
    assert echo({"id": 1, "v": 3}, unique=unique) == second


# Throttle.


def test_a_throttle_accepts_one_task_in_a_period_whatever_becomes_of_it() -> None:
    throttle = Throttle(by=("payload.message.id",), period=2)
    first = echo({"id": 1, "v": 1}, unique=throttle)
    cancel(first)
    assert echo({"id": 1, "v": 2}, unique=throttle) == first
    pass_time(2)
    assert echo({"id": 1, "v": 3}, unique=throttle) != first


def test_a_trailing_throttle_does_the_latest_once_more_at_the_end_of_the_period() -> None:
    throttle = Throttle(by=("payload.message.id",), period=2, trailing=True)
    leading = echo({"id": 1, "v": 1}, unique=throttle)
    trailing = echo({"id": 1, "v": 2}, unique=throttle)
    assert trailing != leading
    assert echo({"id": 1, "v": 3}, unique=throttle) == trailing
    row = now(trailing)
    assert row.state == State.SCHEDULED
    assert row.payload["message"]["v"] == 3
    assert timedelta(seconds=2) <= row.run_at - leading.created_at < timedelta(seconds=30)
    assert row.unique_until - row.run_at == 2 * SECOND
    assert now(leading).payload["message"]["v"] == 1
    pass_time(2)  # the trailing one is due: what comes now is no longer its business
    following = echo({"id": 1, "v": 4}, unique=throttle)
    assert following not in (leading, trailing)
    assert now(following).run_at == now(trailing).run_at + 2 * SECOND


# Debounce.


def test_a_debounce_puts_its_one_task_off_and_keeps_the_latest_payload() -> None:
    debounce = Debounce(by=("payload.message.id",), wait=60)
    first = echo({"id": 1, "v": 1}, unique=debounce)
    assert first.state == State.SCHEDULED
    pass_time(50)
    before = database_now()
    second = echo({"id": 1, "v": 2}, unique=debounce)
    assert second == first
    assert second.payload["message"]["v"] == 2
    assert before + 60 * SECOND <= second.run_at <= database_now() + 61 * SECOND


def test_a_debounce_waits_no_longer_than_it_may() -> None:
    debounce = Debounce(by=("payload.message.id",), wait=60, max_wait=100)
    first = echo({"id": 1, "v": 1}, unique=debounce)
    pass_time(59)
    second = echo({"id": 1, "v": 2}, unique=debounce)
    assert second.run_at == now(first).created_at + 100 * SECOND


def test_a_change_after_the_wait_is_over_leads_to_one_more_run() -> None:
    debounce = Debounce(by=("payload.message.id",), wait=60)
    first = echo({"id": 1, "v": 1}, unique=debounce)
    pass_time(61)
    second = echo({"id": 1, "v": 2}, unique=debounce)
    assert second != first
    assert now(first).payload["message"]["v"] == 1


def test_an_adaptive_debounce_waits_longer_after_many_changes() -> None:
    debounce = Debounce(by=("payload.message.id",), wait=0.3, factor=1.5, after=5, longest=5)
    waits = []
    for version in range(20):
        task = echo({"id": 1, "v": version}, unique=debounce)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM %s::timestamptz - clock_timestamp())::float8", [task.run_at]
            )
            waits.append(cursor.fetchone()[0])
        Task.objects.update(run_at=database_now() + timedelta(hours=1))  # time does not matter here
    expected = [min(5, 0.3 * 1.5 ** max(0, trigger - 5)) for trigger in range(1, 21)]
    assert Task.objects.count() == 1
    assert waits[1:] == pytest.approx(expected[1:], abs=0.2)


# Many at once.


def test_one_call_may_name_a_key_many_times() -> None:
    one, other, same = submit_many(many(1, 2, 1, unique=BY_MESSAGE))
    assert one == same != other
    debounce = Debounce(wait=60)
    ids = submit_many(many(*range(500), unique=debounce, unique_key="storm"))
    assert len(set(ids)) == 1
    assert Task.objects.get(pk=ids[0]).payload == {"message": 499}
    with pytest.raises(Conflict):
        submit_many(many(8, 8, unique=Unique(mode="reject")))
    assert not Task.objects.filter(payload={"message": 8}).exists()


def test_unique_and_other_tasks_come_back_in_their_order() -> None:
    old = echo(0)
    wanted = [*many(0, 1, unique=BY_MESSAGE), *many(0, 0), *many(1, 5, unique=BY_MESSAGE)]
    ids = submit_many(wanted)
    assert [Task.objects.get(pk=each).payload["message"] for each in ids] == [0, 1, 0, 0, 1, 5]
    assert ids[0] == old.pk
    assert ids[1] == ids[4]
    assert len(set(ids)) == 5


@committed
@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (Unique(), 1),
        (Unique(mode="replace"), 1),
        (Throttle(period=3600), 1),
        (Throttle(period=3600, trailing=True), 2),
        (Debounce(wait=3600), 1),
    ],
    ids=["return", "replace", "throttle", "throttle with trailing", "debounce"],
)
def test_many_submitters_of_one_key_agree(policy: Any, count: int) -> None:
    def submitter(number: int) -> Callable[[], list[Any]]:
        return lambda: [submit_many(many(number, unique=policy, unique_key="k"))[0] for _ in range(5)]

    answers = [each for ids in together(*map(submitter, range(40))) for each in ids]
    assert len(answers) == 200
    assert set(answers) == set(Task.objects.values_list("pk", flat=True))
    assert Task.objects.count() == count


@committed
def test_many_submitters_of_one_id_make_one_task() -> None:
    answers = together(*[lambda: echo(key="order-7")] * 40)
    assert Task.objects.count() == len(set(answers)) == 1


@committed
def test_calls_for_the_same_keys_in_opposite_order_all_end() -> None:
    for policy in (BY_MESSAGE, Debounce(by=("payload.message",), wait=60)):
        wanted = many(*range(100), unique=policy)
        calls = [lambda part=part: submit_many(part) for part in (wanted, wanted[::-1]) * 4]
        answers = together(*calls)
        assert {frozenset(each) for each in answers} == {frozenset(answers[0])}
        assert Task.objects.count() == 100
        Task.objects.all().delete()


@committed
def test_a_key_whose_first_submitter_rolls_back_is_free_for_the_next() -> None:
    def give_up() -> None:
        transaction.set_autocommit(False)
        echo()
        transaction.rollback()

    def insist() -> Task:
        return echo()

    for _ in range(10):
        Task.objects.all().delete()
        _, task = together(give_up, insist)
        assert [each.pk for each in Task.objects.all()] == [task.pk]


@committed
def test_no_change_is_lost_between_a_debounce_and_a_worker(worker: StagedWorker) -> None:
    """Whatever is claimed meanwhile has had its payload, and the latest payload is always yet to come."""
    debounce = Debounce(wait=0.001)
    seen: list[int] = []

    def change() -> None:
        for version in range(100):
            submit_many(many(version, unique=debounce, unique_key="k"))

    def work() -> None:
        for _ in range(100):
            waiting = list(Task.objects.filter(state__in=[State.SCHEDULED, State.QUEUED]))
            Task.objects.filter(state=State.SCHEDULED, run_at__lte=database_now()).update(state=State.QUEUED)
            ready = [task for task in waiting if now(task).state == State.QUEUED]
            release(*ready)
            grants = worker.claim(*ready)
            seen.extend(sorted(version_of(grant) for grant in grants))  # of one claim, in any order
            worker.end(grants)

    def version_of(grant: Any) -> int:
        return int(json.loads(grant.payload)["message"])

    together(change, work)
    left = [task.payload["message"] for task in Task.objects.exclude(state=State.SUCCEEDED)]
    assert seen == sorted(seen)
    assert max([*seen, *left]) == 99


# Declarations.


@pytest.mark.parametrize(
    ("unique", "word"),
    [
        ({"mode": "never"}, "mode"),
        ({"mode": "debounce"}, "waitMs"),
        ({"mode": "throttle", "periodMs": 0}, "period"),
        ({"mode": "throttle", "periodMs": "long"}, "periodMs"),
        ({"by": ["customer"]}, "payload.customer"),
        ({"by": "payload.a"}, "by"),
        ({"by": ["payload.nothing"]}, "payload.nothing"),
        ({"states": "running"}, "states"),
        ({"mode": "replace", "states": "always"}, "waiting"),
        ({"mode": "debounce", "waitMs": 10, "maxWaitMs": 5}, "max_wait"),
        ({"mode": "debounce", "waitMs": 10, "factor": 2}, "longest"),
        ({"periodMs": float("nan")}, "periodMs"),
        ({"mode": "return", "waitMs": 5}, "waitMs"),
        ("return", "document"),
    ],
)
def test_a_policy_that_makes_no_sense_is_a_fault_that_says_why(unique: Any, word: str) -> None:
    with pytest.raises(InvalidSubmission) as caught:
        echo(unique=unique)
    assert [fault.pointer for fault in caught.value.faults] == ["unique"]
    assert word in caught.value.faults[0].detail


@pytest.mark.parametrize("key", ["", "a" * 256, "line\nbreak", 7])
def test_a_unique_key_that_cannot_be_shown_is_a_fault(key: Any) -> None:
    with pytest.raises(InvalidSubmission, match="uniqueKey"):
        echo(unique_key=key)


def test_a_debounced_task_has_no_other_time() -> None:
    with pytest.raises(InvalidSubmission, match="delay"):
        echo(unique=Debounce(wait=1), delay=5)


# Plans.


@committed
def test_who_holds_a_key_is_looked_up_in_its_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        try:
            row: dict[str, Any] = {
                "place": [0],
                "unique_key": ["k"],
                "mode": ["debounce"],
                "payload": ["1"],
                "priority": [5],
            }
            more = {name: [None] for name in ("run_at", "delay", "max_wait", "factor", "after", "longest")}
            cursor.execute("EXPLAIN " + statement("meet_unique"), {**row, **more})
            plan = "\n".join(line for (line,) in cursor.fetchall())
        finally:
            cursor.execute("RESET enable_seqscan")
    assert "capataz_task_unique" in plan
    assert "Seq Scan on capataz_task" not in plan
