"""Execution: who is granted a run, who may end it, and what is written down of it."""

import json
import random
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings

from capataz.database import database_now
from capataz.lifecycle import execution
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.execution import Finish
from capataz.models import Attempt, Event, Outcome, Rollup, Task, Worker
from capataz.policy import exponential, fixed
from capataz.sql import statement
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, kinds, now, release, states, tasks, together

Hire = Callable[..., StagedWorker]


def attempts(task: Task) -> list[str]:
    return list(Attempt.objects.filter(task_id=task.pk).values_list("outcome", flat=True))


# Claiming.


def test_a_claim_grants_what_is_released_and_nothing_else(worker: StagedWorker) -> None:
    out, held_back = tasks(2, data={"message": "hello"})
    release(out)
    [grant] = worker.claim(out, held_back)
    assert (grant.id, grant.type, json.loads(grant.payload)) == (out.pk, "demo.echo", {"message": "hello"})
    assert states([out, held_back]) == [State.CLAIMED, State.QUEUED]
    assert now(out).worker_id == worker.id


def test_a_task_is_granted_once(hire: Hire) -> None:
    [task] = tasks(1)
    release(task)
    assert len(hire().claim(task)) == 1
    assert hire().claim(task) == []


def test_a_claim_whose_answer_was_lost_can_be_repeated(worker: StagedWorker) -> None:
    [task] = tasks(1)
    release(task)
    run = worker.new_run()
    first = execution.claim(worker.connection, worker.id, [(task.pk, run)])
    assert execution.claim(worker.connection, worker.id, [(task.pk, run)]) == first
    assert now(task).run == run


def test_a_repeated_claim_does_not_put_a_running_task_back(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.run(task)
    execution.claim(worker.connection, worker.id, [(task.pk, grant.run)])
    assert now(task).state == State.RUNNING


def test_many_workers_at_once_are_granted_every_task_exactly_once(hire: Hire) -> None:
    waiting, crew = tasks(200), [hire() for _ in range(4)]
    release(*waiting)
    shuffled = [random.sample(waiting, len(waiting)) for _ in crew]
    answers = together(
        *(lambda w=w, mine=mine: w.claim(*mine) for w, mine in zip(crew, shuffled, strict=True))
    )
    granted = [grant.id for grants in answers for grant in grants]
    assert len(granted) == len(set(granted))
    rest = [task for task in waiting if now(task).state == State.QUEUED]
    granted += [grant.id for grant in crew[0].claim(*rest)]
    assert sorted(granted) == [task.pk for task in waiting]


def test_a_locked_row_is_skipped_and_can_be_claimed_later(worker: StagedWorker, locked: Any) -> None:
    one, other = tasks(2)
    release(one, other)
    with locked(one):
        assert [grant.id for grant in worker.claim(one, other)] == [other.pk]
    assert [grant.id for grant in worker.claim(one)] == [one.pk]


@pytest.mark.parametrize("state", ["draining", "stopped", "lost"])
def test_a_worker_that_is_not_running_is_granted_nothing(worker: StagedWorker, state: str) -> None:
    [task] = tasks(1)
    release(task)
    Worker.objects.filter(pk=worker.id).update(state=state)
    assert worker.claim(task) == []
    assert now(task).state == State.QUEUED


def test_a_task_past_its_deadline_is_not_granted(worker: StagedWorker) -> None:
    [task] = tasks(1, expires_at=database_now() - timedelta(seconds=1))
    release(task)
    assert worker.claim(task) == []


@pytest.mark.parametrize("finish", [State.SUCCEEDED, State.DEAD, State.CANCELLED])
def test_a_finished_task_is_not_granted_again(worker: StagedWorker, finish: State) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), finish, Outcome.FAILED)
    assert worker.claim(task) == []


def test_an_id_that_does_not_exist_is_not_granted(worker: StagedWorker) -> None:
    assert execution.claim(worker.connection, worker.id, [(uuid.uuid4(), worker.new_run())]) == []


# Finishing.


def test_a_success_keeps_its_result_and_one_attempt(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.run(task)
    assert worker.end([grant], result='{"sum": 3}') == {task.pk}
    ended = now(task)
    assert (ended.state, ended.result, ended.attempts) == (State.SUCCEEDED, {"sum": 3}, 1)
    assert (ended.run, ended.worker_id, ended.released_at) == (None, None, None)
    [attempt] = Attempt.objects.filter(task_id=task.pk)
    assert (attempt.outcome, attempt.run, attempt.worker_id) == ("succeeded", grant.run, worker.id)


def test_the_times_of_a_run_are_told_by_the_databases_clock(worker: StagedWorker) -> None:
    [task] = tasks(1)
    grants = worker.hold(task)
    before = database_now()
    worker.end(grants, started_ago=5.0, ended_ago=2.0)
    ended = now(task)
    assert ended.run_time == timedelta(seconds=3)
    assert before - timedelta(seconds=2) <= ended.finished_at <= database_now()


def test_a_short_task_goes_from_claimed_straight_to_its_end(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.hold(task))
    assert now(task).state == State.SUCCEEDED
    assert now(task).started_at is not None


def test_a_plain_success_is_no_event(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task))
    assert kinds(task) == []


def test_a_failure_that_is_retried_waits_its_delay(worker: StagedWorker) -> None:
    [task] = tasks(1)
    before = database_now()
    worker.end(worker.run(task), State.RETRYING, Outcome.FAILED, error="boom", traceback="line 1", delay=60)
    ended = now(task)
    assert (ended.state, ended.error, ended.attempts, ended.finished_at) == (State.RETRYING, "boom", 1, None)
    assert before <= ended.run_at - timedelta(seconds=60) <= database_now()
    [attempt] = Attempt.objects.all()
    assert (attempt.outcome, attempt.error, attempt.traceback) == ("failed", "boom", "line 1")
    [event] = Event.objects.filter(task_id=task.pk)
    assert (event.kind, event.detail["error"], event.detail["attempts"]) == ("task.retrying", "boom", 1)


def test_a_dead_letter_is_an_event(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.DEAD, Outcome.FAILED, error="boom")
    assert (now(task).state, kinds(task)) == (State.DEAD, ["task.dead"])


def test_a_loss_costs_no_attempt_and_is_counted_apart(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.QUEUED, Outcome.LOST, error="SIGKILL")
    assert (now(task).state, now(task).attempts, now(task).losses) == (State.QUEUED, 0, 1)
    assert (attempts(task), kinds(task)) == (["lost"], ["task.lost"])


def test_a_stale_run_is_refused(worker: StagedWorker) -> None:
    [task] = tasks(1)
    stale = worker.run(task)
    worker.end(stale, State.QUEUED, Outcome.GIVEN_BACK)
    worker.run(task)
    assert worker.end(stale) == set()
    assert now(task).state == State.RUNNING


def test_a_run_is_ended_once(worker: StagedWorker) -> None:
    [task] = tasks(1)
    grants = worker.run(task)
    assert worker.end(grants) == {task.pk}
    assert worker.end(grants, State.DEAD, Outcome.FAILED) == set()
    assert (now(task).state, attempts(task)) == (State.SUCCEEDED, ["succeeded"])


def test_a_run_that_is_given_twice_at_once_is_ended_once(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.run(task)
    assert worker.end([grant, grant]) == {task.pk}
    assert (now(task).attempts, attempts(task)) == (1, ["succeeded"])
    assert Rollup.objects.get().succeeded == 1


@pytest.mark.parametrize("first", ["lost run", "own run"])
def test_two_runs_of_a_task_that_end_at_once_keep_their_own_outcomes(
    worker: StagedWorker, first: str
) -> None:
    """A worker that was given up for dead and got its own task again may have both to tell."""
    [task] = tasks(1)
    [stale] = worker.run(task)
    worker.end([stale], State.QUEUED, Outcome.GIVEN_BACK, started_ago=None)
    [grant] = worker.run(task)
    lost = Finish(task.pk, stale.run, State.QUEUED, Outcome.LOST, error="killed", started_ago=2.0)
    own = Finish(task.pk, grant.run, State.SUCCEEDED, Outcome.SUCCEEDED, result="1", started_ago=1.0)
    ends = [lost, own] if first == "lost run" else [own, lost]
    assert execution.finish(worker.connection, ends) == {task.pk}
    ended = now(task)
    assert (ended.state, ended.result, ended.error, ended.losses) == (State.SUCCEEDED, 1, None, 0)
    [attempt] = Attempt.objects.filter(task_id=task.pk)
    assert (attempt.run, attempt.outcome) == (grant.run, "succeeded")


def test_a_refused_row_does_not_keep_the_others_from_being_written(worker: StagedWorker) -> None:
    one, other = tasks(2)
    stale, good = worker.run(one, other)
    worker.end([stale], State.QUEUED, Outcome.GIVEN_BACK)
    assert worker.end([stale, good]) == {other.pk}


def test_a_run_with_another_tasks_id_is_refused(worker: StagedWorker) -> None:
    one, other = tasks(2)
    first, second = worker.run(one, other)
    crossed = Finish(first.id, second.run, State.SUCCEEDED, Outcome.SUCCEEDED)
    assert execution.finish(worker.connection, [crossed]) == set()


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.LOST, Outcome.GIVEN_BACK])
@pytest.mark.parametrize("state", [State.RETRYING, State.QUEUED, State.DEAD])
def test_a_task_whose_cancellation_was_asked_for_does_not_come_back_to_life(
    worker: StagedWorker, state: State, outcome: Outcome
) -> None:
    [task] = tasks(1)
    grants = worker.run(task)
    cancel(task)
    worker.end(grants, state, outcome)
    assert (now(task).state, now(task).run_at) == (State.CANCELLED, None)
    assert kinds(task) == ["task.cancelRequested", "task.cancelled"]


def test_a_task_that_succeeds_before_its_cancellation_reaches_it_has_succeeded(worker: StagedWorker) -> None:
    [task] = tasks(1)
    grants = worker.run(task)
    cancel(task)
    worker.end(grants)
    assert now(task).state == State.SUCCEEDED


def test_what_has_not_started_is_given_back_without_a_trace(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.hold(task), State.QUEUED, Outcome.GIVEN_BACK, started_ago=None)
    back = now(task)
    assert (back.state, back.attempts, back.losses, back.given_back) == (State.QUEUED, 0, 0, 0)
    assert (back.released_at, back.publishes, attempts(task), kinds(task)) == (None, 0, [], [])


def test_what_a_stopping_worker_gives_back_is_counted_and_told(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.hold(task), State.QUEUED, Outcome.GIVEN_BACK, started_ago=None, counted=True)
    assert (now(task).given_back, now(task).attempts) == (1, 0)
    assert (attempts(task), kinds(task)) == ([], ["task.givenBack"])


def test_a_task_that_stopping_workers_give_back_again_and_again_raises_an_alert(worker: StagedWorker) -> None:
    [task] = tasks(1)
    for _ in range(execution.GIVEN_BACK_OFTEN + 1):
        worker.end(worker.hold(task), State.QUEUED, Outcome.GIVEN_BACK, started_ago=None, counted=True)
    quiet = execution.GIVEN_BACK_OFTEN - 1
    assert kinds(task) == ["task.givenBack"] * quiet + ["task.givenBackOften"] * 2
    assert Event.objects.filter(kind="task.givenBackOften").earliest("id").detail["givenBack"] == 5


def test_giving_back_keeps_the_error_of_the_attempt_before(worker: StagedWorker) -> None:
    [task] = tasks(1)
    worker.end(worker.run(task), State.QUEUED, Outcome.LOST, error="SIGSEGV")
    worker.end(worker.run(task), State.QUEUED, Outcome.GIVEN_BACK, error="its worker was asked to stop")
    assert now(task).error == "SIGSEGV"


def test_overlapping_batches_in_random_order_do_not_deadlock(worker: StagedWorker, hire: Hire) -> None:
    some = tasks(400)
    finishes = [Finish(each.id, each.run, State.SUCCEEDED, Outcome.SUCCEEDED) for each in worker.run(*some)]
    crew = [hire() for _ in range(4)]

    def end_in_batches(member: StagedWorker) -> set[uuid.UUID]:
        mine = random.sample(finishes, len(finishes))
        batches = [mine[start : start + 80] for start in range(0, len(mine), 80)]
        return set().union(*(execution.finish(member.connection, batch) for batch in batches))

    answers = together(*(lambda member=member: end_in_batches(member) for member in crew))
    ended = [each for answer in answers for each in answer]
    assert sorted(ended) == [task.pk for task in some]
    assert Attempt.objects.count() == 0


def test_a_finish_never_waits_for_a_locked_row_and_tells_it_from_a_refused_one(
    worker: StagedWorker, locked: Any
) -> None:
    free, busy, gone = tasks(3)
    grants = worker.run(free, busy, gone)
    worker.end(grants[2:], State.QUEUED, Outcome.GIVEN_BACK)
    runs = [(grant.id, grant.run) for grant in grants]
    with locked(busy):
        assert worker.end(grants) == {free.pk}
        assert execution.still_held(worker.connection, runs) == {busy.pk}
    assert worker.end(grants) == {busy.pk}
    assert execution.still_held(worker.connection, runs) == set()


def test_a_refused_claim_tells_what_was_only_locked_from_what_is_not_to_be_had(
    worker: StagedWorker, locked: Any
) -> None:
    busy, taken, _held_back, late = some = tasks(4)
    worker.hold(taken)
    release(busy, late)
    Task.objects.filter(pk=late.pk).update(expires_at=database_now())
    with locked(busy):
        assert worker.claim(*some) == []
        assert execution.still_grantable(worker.connection, [task.pk for task in some]) == {busy.pk}
    assert [grant.id for grant in worker.claim(*some)] == [busy.pk]


# What runs.


def test_a_started_run_is_shown_with_its_true_start(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.hold(task)
    before = database_now()
    assert execution.mark_running(worker.connection, [(grant.id, grant.run, 30.0)]) == {grant.run}
    assert now(task).state == State.RUNNING
    assert before <= now(task).started_at + timedelta(seconds=30) <= database_now()


def test_only_a_run_that_is_still_granted_is_shown(worker: StagedWorker) -> None:
    [task] = tasks(1)
    [grant] = worker.hold(task)
    worker.end([grant], State.QUEUED, Outcome.GIVEN_BACK, started_ago=None)
    assert execution.mark_running(worker.connection, [(grant.id, grant.run, 1.0)]) == set()
    assert now(task).state == State.QUEUED


def test_a_locked_row_is_shown_a_moment_later(worker: StagedWorker, locked: Any) -> None:
    one, other = tasks(2)
    grants = worker.hold(one, other)
    started = [(grant.id, grant.run, 1.0) for grant in grants]
    with locked(one):
        assert execution.mark_running(worker.connection, started) == {grants[1].run}
    assert execution.mark_running(worker.connection, started[:1]) == {grants[0].run}


def test_progress_is_written_for_a_granted_run_only(worker: StagedWorker) -> None:
    one, other = tasks(2)
    first, second = worker.run(one, other)
    worker.end([second])
    execution.report_progress(
        worker.connection, [(each.id, each.run, 40, "half") for each in (first, second)]
    )
    assert (now(one).progress, now(one).progress_message) == (40, "half")
    assert now(other).progress is None


def test_a_worker_sees_what_the_rows_say_it_holds(worker: StagedWorker, hire: Hire) -> None:
    mine, wanted, foreign, _ = tasks(4)
    [one] = worker.hold(mine)
    [two] = worker.run(wanted)
    hire().hold(foreign)
    cancel(wanted)
    held = execution.held_rows(worker.connection, worker.id)
    assert sorted(held) == sorted([(mine.pk, one.run, False), (wanted.pk, two.run, True)])


# Policy.


def test_a_failure_below_the_limit_is_tried_again() -> None:
    outcome = execution.after_failure(fixed(7), attempts=2, max_attempts=3, retryable=True)
    assert outcome == (State.RETRYING, 7.0)


@pytest.mark.parametrize(("attempts_made", "retryable"), [(3, True), (4, True), (1, False)])
def test_a_failure_out_of_attempts_or_not_worth_repeating_is_dead(
    attempts_made: int, retryable: bool
) -> None:
    policy = exponential()
    fate = execution.after_failure(policy, attempts=attempts_made, max_attempts=3, retryable=retryable)
    assert fate == (State.DEAD, 0.0)


def test_a_task_that_keeps_killing_its_process_is_quarantined() -> None:
    fates = [execution.after_loss(losses) for losses in range(1, settings.MAX_LOSSES + 1)]
    assert fates == [State.QUEUED] * (settings.MAX_LOSSES - 1) + [State.DEAD]


# Plans.

ROWS = 20_000
HOT = [
    "claim",
    "finish",
    "mark_running",
    "record_results",
    "report_progress",
    "still_grantable",
    "still_held",
]


@pytest.fixture
def big_table(worker: StagedWorker) -> Iterator[psycopg.Connection]:
    """Twenty thousand tasks: waiting, released, held and ended ones, as on a busy day."""
    worker.connection.execute(
        """
        INSERT INTO capataz_task (id, type, queue, priority, state, payload, max_attempts,
                                  run, worker_id, released_at, started_at, finished_at)
        SELECT ('0198a000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'demo.echo', 'default', 5,
               state, '{}', 3,
               CASE WHEN held THEN n END,
               CASE WHEN held THEN %s END,
               CASE WHEN held OR n %% 5 = 1 THEN now() END,
               CASE WHEN state = 'running' THEN now() END,
               CASE WHEN state = 'succeeded' THEN now() END
          FROM (
            SELECT n, (ARRAY['claimed', 'queued', 'queued', 'running', 'succeeded'])[n %% 5 + 1] AS state,
                   n %% 5 IN (0, 3) AS held
              FROM generate_series(1, %s) AS n
          ) AS made
        """,
        [worker.id, ROWS],
    )
    yield worker.connection


def row_id(number: int) -> uuid.UUID:
    return uuid.UUID(f"0198a000-0000-7000-8000-{number:012x}")


def hot_statements(worker_id: int, count: int) -> dict[str, dict[str, Any]]:
    """The statements that every task costs, with real parameters for so many tasks."""
    out = [row_id(number) for number in range(1, ROWS, 5)][:count]
    held = list(range(3, ROWS, 5))[:count]
    runs = {"ids": [row_id(number) for number in held], "runs": held}
    over = [row_id(number) for number in range(4, ROWS, 5)][:count]
    same: dict[str, list[Any]] = {
        "results": ["{}"],
        "errors": [None],
        "tracebacks": [None],
        "ended_ago": [0.0],
        "delays": [0.0],
    }
    ended: dict[str, list[Any]] = {
        "states": ["succeeded"],
        "outcomes": ["succeeded"],
        "started_ago": [1.0],
        "counted": [False],
        "causes": [None],
        **same,
    }
    return {
        "claim": {"worker": worker_id, "ids": out, "runs": [ROWS + number for number in range(len(out))]},
        "finish": {**runs, "alert": 5, **{name: value * len(held) for name, value in ended.items()}},
        "mark_running": {**runs, "ago": [1.0] * len(held)},
        "record_results": {"ids": over, "workers": [worker_id] * len(over), "tracebacks": [None] * len(over)},
        "still_grantable": {"ids": out},
        "still_held": runs,
        "report_progress": {**runs, "percents": [50] * len(held), "messages": ["half"] * len(held)},
    }


def custom_plan(connection: psycopg.Connection, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    [[[plan]]] = connection.execute("EXPLAIN (FORMAT JSON) " + statement(name), parameters).fetchall()
    return plan["Plan"]


def generic_plan(connection: psycopg.Connection, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The plan that PostgreSQL keeps for a prepared statement, whatever its parameters."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement(name))))
    text = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement(name))
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        connection.execute(f"PREPARE hot AS {text.replace('%%', '%')}")
        places = ", ".join(["%s"] * len(names))
        query = f"EXPLAIN (FORMAT JSON) EXECUTE hot ({places})"
        values = [parameters[each] for each in names]
        [[[plan]]] = psycopg.ClientCursor(connection).execute(query, values).fetchall()
        connection.execute("DEALLOCATE hot")
    return plan["Plan"]


def accesses(plan: dict[str, Any]) -> set[str]:
    """How the plan reads the task table: the indexes, or the kind of scan where there is none."""
    own = set()
    if plan.get("Relation Name") == "capataz_task" and "Scan" in plan["Node Type"]:
        own = {plan.get("Index Name", plan["Node Type"])}
    if plan["Node Type"] == "Bitmap Index Scan":
        own = {plan["Index Name"]}
    return own.union(*(accesses(inner) for inner in plan.get("Plans", [])))


@pytest.mark.parametrize("explain", [custom_plan, generic_plan])
@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_reads_tasks_by_their_primary_key_only(
    worker: StagedWorker, big_table: psycopg.Connection, name: str, count: int, explain: Callable[..., Any]
) -> None:
    big_table.execute("ANALYZE capataz_task")
    parameters = hot_statements(worker.id, count)[name]
    assert accesses(explain(big_table, name, parameters)) == {"capataz_task_pkey"}


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_never_prefers_another_index_before_the_first_analyze(
    worker: StagedWorker, big_table: psycopg.Connection, name: str, count: int
) -> None:
    """While a table is small and nobody has counted its rows, reading it whole may look as cheap."""
    parameters = hot_statements(worker.id, count)[name]
    assert accesses(generic_plan(big_table, name, parameters)) == {"capataz_task_pkey"}
    assert accesses(custom_plan(big_table, name, parameters)) <= {"capataz_task_pkey", "Seq Scan"}


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_stays_with_the_primary_key_when_nearly_everything_runs(
    worker: StagedWorker, big_table: psycopg.Connection, name: str
) -> None:
    big_table.execute(
        "UPDATE capataz_task SET state = 'running', run = 1, worker_id = %s, released_at = now()"
        " WHERE state = 'queued' AND id > %s",
        [worker.id, row_id(5000)],
    )
    big_table.execute("ANALYZE capataz_task")
    for explain in (custom_plan, generic_plan):
        parameters = hot_statements(worker.id, 50)[name]
        assert accesses(explain(big_table, name, parameters)) == {"capataz_task_pkey"}
