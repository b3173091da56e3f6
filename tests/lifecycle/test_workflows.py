"""Workflows: what starts when, what comes of failures, and what is mended."""

import json
import time
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from capataz import handlers
from capataz.errors import Conflict, IllegalMove, InvalidSubmission
from capataz.handlers import RunningTask
from capataz.lifecycle import parents, settling, submission, workflows
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.retry import retry
from capataz.lifecycle.workflows import Workflow, chain, chord, group, step
from capataz.models import Dependency, Outcome, Task
from capataz.models import Workflow as Row
from capataz.states import State
from tests.lifecycle.stage import together


class Player:
    """Brings tasks of a workflow to the ends that a test wants, as a worker and a dispatcher would."""

    def __init__(self, worker: Any, session: Any) -> None:
        self.worker, self.session = worker, session

    def settle(self) -> int:
        return settling.settle(self.session)

    def task(self, node: Any) -> Task:
        return Task.objects.get(pk=node.id)

    def end(self, *nodes: Any, dead: bool = False, result: Any = None) -> None:
        tasks = [self.task(node) for node in nodes]
        assert {task.state for task in tasks} == {"queued"}
        grants = self.worker.run(*tasks)
        how = (State.DEAD, Outcome.FAILED) if dead else (State.SUCCEEDED, Outcome.SUCCEEDED)
        about = {"error": "it failed"} if dead else {"result": json.dumps(result)}
        self.worker.end(grants, *how, **about)
        self.settle()

    def states(self, *nodes: Any) -> list[str]:
        return [self.task(node).state for node in nodes]


@pytest.fixture
def player(worker, session):
    return Player(worker, session)


def counts(row: Row) -> tuple[int, ...]:
    row.refresh_from_db()
    return row.total, row.succeeded, row.dead, row.cancelled, row.expired


def test_a_child_starts_when_its_last_parent_has_succeeded(player):
    with Workflow("diamond") as flow:
        a = flow.add("demo.echo", name="a")
        b, c = (flow.add("demo.echo", name=name, after=[a]) for name in "bc")
        d = flow.add("demo.echo", name="d", after=[b, c])
    assert player.states(a, b, c, d) == ["queued", "blocked", "blocked", "blocked"]
    player.end(a)
    assert player.states(b, c, d) == ["queued", "queued", "blocked"]
    player.end(b)
    assert player.states(c, d) == ["queued", "blocked"]
    assert player.task(d).obstacle() == "it waits for c"
    player.end(c)
    assert player.states(d) == ["queued"]
    row = Row.objects.get(pk=flow.id)
    assert (row.state, counts(row)) == ("running", (4, 3, 0, 0, 0))
    player.end(d)
    row.refresh_from_db()
    assert (row.state, counts(row)) == ("succeeded", (4, 4, 0, 0, 0))


def test_a_failure_does_to_each_child_what_its_policy_says(player):
    with Workflow() as flow:
        a = flow.add("demo.echo", name="a")
        cancelled = flow.add("demo.echo", after=[a])
        below = flow.add("demo.echo", after=[cancelled])
        runs = flow.add("demo.echo", after=[a], on_failure="run")
        ignores = flow.add("demo.echo", after={a: "ignore"})
    player.end(a, dead=True)
    assert player.states(cancelled, below, runs, ignores) == ["cancelled", "cancelled", "queued", "queued"]
    [told] = parents.of(runs.id)
    assert (told.name, told.state, told.error) == ("a", "dead", "it failed")
    assert parents.of(ignores.id) == []


def test_a_retry_brings_back_what_was_cancelled_for_the_failure_and_nothing_else(player):
    with Workflow() as flow:
        good, bad = flow.add("demo.echo"), flow.add("demo.echo")
        after_good = flow.add("demo.echo", after=[good])
        after_bad = flow.add("demo.echo", after=[bad])
        last = flow.add("demo.echo", after=[after_bad, after_good])
        unwanted = flow.add("demo.echo", after=[bad])
    cancel(player.task(unwanted))
    player.end(good)
    player.end(after_good)
    player.end(bad, dead=True)
    row = Row.objects.get(pk=flow.id)
    assert (row.state, counts(row)) == ("failed", (6, 2, 1, 3, 0))
    with pytest.raises(IllegalMove, match="retry that first"):
        retry(player.task(after_bad))

    retry(player.task(bad))
    player.settle()
    assert player.states(bad, after_bad, last, unwanted) == ["queued", "blocked", "blocked", "cancelled"]
    row.refresh_from_db()
    assert (row.state, counts(row)) == ("running", (6, 2, 0, 1, 0))
    for node in (bad, after_bad, last):
        player.end(node)
    row.refresh_from_db()
    assert (row.state, counts(row)) == ("cancelled", (6, 5, 0, 1, 0))


def test_only_the_failed_branch_of_a_workflow_is_retried(player):
    with Workflow() as flow:
        good, bad = flow.add("demo.echo"), flow.add("demo.echo")
        last = flow.add("demo.echo", after=[good, bad])
    player.end(good)
    player.end(bad, dead=True)
    row = Row.objects.get(pk=flow.id)
    assert workflows.retry(row) == 1
    player.settle()
    assert player.states(good, bad, last) == ["succeeded", "queued", "blocked"]
    player.end(bad)
    player.end(last)
    row.refresh_from_db()
    assert row.state == "succeeded"
    with pytest.raises(IllegalMove):
        workflows.retry(row)


def test_a_cancelled_workflow_can_be_retried_and_keeps_its_order(player):
    with Workflow() as flow:
        a = flow.add("demo.echo")
        b = flow.add("demo.echo", after=[a])
        c = flow.add("demo.echo", after=[b])
    player.end(a)
    row = Row.objects.get(pk=flow.id)
    workflows.cancel(row, reason="enough", by="somebody")
    player.settle()
    row.refresh_from_db()
    assert (row.state, player.states(a, b, c)) == ("cancelled", ["succeeded", "cancelled", "cancelled"])
    with pytest.raises(IllegalMove):
        workflows.cancel(row)
    assert workflows.retry(row) == 2
    player.settle()
    assert player.states(b, c) == ["queued", "blocked"]


def test_what_a_worker_holds_of_a_cancelled_workflow_is_stopped_by_it(player):
    with Workflow() as flow:
        a = flow.add("demo.echo")
    [grant] = player.worker.run(player.task(a))
    workflows.cancel(Row.objects.get(pk=flow.id))
    assert player.task(a).state == "running"
    assert player.task(a).cancel_requested_at is not None
    player.worker.end([grant], State.DEAD, Outcome.FAILED)
    player.settle()
    assert Row.objects.get(pk=flow.id).state == "cancelled"


def test_every_way_to_an_end_is_noticed(player):
    ways = {
        "finish": lambda task: player.worker.end(player.worker.run(task)),
        "cancel": cancel,
        "expiry": lambda task: Task.objects.filter(pk=task.pk).update(state="expired", finished_at=Now()),
    }
    for name, way in ways.items():
        with Workflow(name) as flow:
            a = flow.add("demo.echo")
            b = flow.add("demo.echo", after={a: "run"})
        way(player.task(a))
        player.settle()
        assert player.states(b) == ["queued"], name
        assert Row.objects.get(pk=flow.id).ended == 1


def test_a_retry_that_comes_before_anybody_has_noticed_the_end_undoes_it(player):
    with Workflow() as flow:
        a = flow.add("demo.echo")
        b = flow.add("demo.echo", after=[a])
    [grant] = player.worker.run(player.task(a))
    player.worker.end([grant], State.DEAD, Outcome.FAILED)
    retry(player.task(a))
    player.settle()
    assert player.states(a, b) == ["queued", "blocked"]
    assert counts(Row.objects.get(pk=flow.id)) == (2, 0, 0, 0, 0)


def test_a_cycle_is_named_and_nothing_is_submitted(transactional_db):
    flow = Workflow()
    flow.add("demo.echo", name="a", after=["c"])
    flow.add("demo.echo", name="b", after=["a"])
    flow.add("demo.echo", name="c", after=["b"])
    with pytest.raises(InvalidSubmission, match=r"could start: .*a.*->") as caught:
        flow.submit()
    assert caught.value.faults[0].code == "cycle"
    assert Row.objects.count() == Task.objects.count() == 0


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"after": ["nobody"]}, "nodes/x/after"),
        ({"on_failure": "panic"}, "nodes/x/onFailure"),
        ({"colour": "red"}, "nodes/x/colour"),
        ({"priority": 99}, "nodes/x/priority"),
    ],
)
def test_what_is_wrong_is_named_by_its_node_and_nothing_is_submitted(transactional_db, options, pointer):
    with pytest.raises(InvalidSubmission) as caught:
        flow = Workflow()
        flow.add("demo.echo", name="fine")
        flow.add("demo.echo", name="x", **options)
        flow.submit()
    assert [fault.pointer for fault in caught.value.faults] == [pointer]
    assert Row.objects.count() == Task.objects.count() == 0


def test_chains_groups_and_chords_nest(player):
    part = chain(
        step("demo.echo", {"message": 1}, name="first"),
        chord(
            [
                step("demo.echo", name="left"),
                chain(step("demo.echo", name="r1"), step("demo.echo", name="r2")),
            ],
            step("demo.echo", name="body"),
        ),
        group(step("demo.echo", name="g1"), step("demo.echo", name="g2", immutable=True)),
    )
    row = workflows.submit_part(part)
    by_name = {task.node: task for task in Task.objects.filter(workflow_id=row.pk)}
    waits = {
        name: sorted(Dependency.objects.filter(child_id=task.pk).values_list("name", "feeds"))
        for name, task in by_name.items()
    }
    assert waits == {
        "first": [],
        "left": [("first", "one")],
        "r1": [("first", "one")],
        "r2": [("r1", "one")],
        "body": [("left", "list"), ("r2", "list")],
        "g1": [("body", "one")],
        "g2": [("body", "")],
    }


def feed(task_type: str, text: str, task_id: Any) -> Any:
    running = RunningTask(id=task_id, type=task_type, attempt=1, starts=1)
    running.find_parents = lambda: parents.of(task_id)
    return json.loads(parents.fed(handlers.find(task_type), text, running))


def test_results_are_given_to_children(player):
    with Workflow() as flow:
        a, b = flow.add("demo.echo", name="a"), flow.add("demo.echo", name="b")
        both = flow.add("demo.echo", after=[a, b], feed=True)
        one = flow.add("demo.record", {"file": "x.log"}, after=[a], feed=True)
        plain = flow.add("demo.echo", {"message": "own"}, after=[a])
    player.end(a, result={"token": "t", "file": "other", "unknown": 1})
    player.end(b, result=7)
    assert feed("demo.echo", "{}", both.id) == {"message": [{"token": "t", "file": "other", "unknown": 1}, 7]}
    assert feed("demo.record", '{"file": "x.log"}', one.id) == {"file": "x.log", "token": "t"}
    assert feed("demo.echo", '{"message": "own"}', plain.id) == {"message": "own"}
    running = RunningTask(id=both.id, type="demo.echo", attempt=1, starts=1)
    running.find_parents = lambda: parents.of(both.id)
    assert running.results["b"] == 7


def called(row: Row) -> list[str]:
    ids = [each["id"] for each in row.callbacks.values()]
    return sorted(Task.objects.filter(pk__in=ids).values_list("payload__message", flat=True))


def test_callbacks_are_submitted_once_each(player):
    callbacks: dict[str, Any] = {
        f"on_{kind}": step("demo.echo", {"message": kind}) for kind in ("success", "complete", "failure")
    }
    with Workflow(**callbacks) as flow:
        a, b = flow.add("demo.echo"), flow.add("demo.echo")
    row = Row.objects.get(pk=flow.id)
    player.end(a, dead=True)
    assert called(row) == ["failure"]
    player.end(b)
    assert called(row) == ["complete", "failure"]
    workflows.retry(row)
    player.settle()
    player.end(a, dead=True)
    assert called(row) == ["complete", "failure"]
    workflows.retry(row)
    player.settle()
    player.end(a)
    assert called(row) == ["complete", "failure", "success"]
    row.refresh_from_db()
    assert sorted(row.called) == ["complete", "failure", "success"]
    assert Task.objects.count() == 5


def test_a_callback_has_the_options_that_it_was_given(player):
    options: dict[str, Any] = {"priority": 9, "backoff": "fixed", "remove_on_complete": 3}
    asked = submission.submit("demo.echo", **options)
    with Workflow(on_complete=step("demo.echo", **options)) as flow:
        node = flow.add("demo.echo", name="a")
    player.end(node)
    made = Task.objects.get(workflow_id=None, pk__gt=asked.pk)
    for name in ("priority", "backoff", "keep", "max_attempts", "lane"):
        assert getattr(made, name) == getattr(asked, name)
    with pytest.raises(InvalidSubmission, match="on_complete/unique_key"):
        Workflow(on_complete=step("demo.echo", unique_key="key")).submit()


def test_what_lost_its_unique_key_comes_back_without_it(player):
    unique: dict[str, Any] = {"unique_key": "key"}
    with Workflow() as flow:
        parent = flow.add("demo.echo", name="parent")
        child = flow.add("demo.echo", name="child", after=[parent], **unique)
    player.end(parent, dead=True)
    assert player.states(child) == ["cancelled"]
    holder = submission.submit("demo.echo", **unique)
    assert holder.pk != child.id
    retry(player.task(parent))
    player.settle()
    player.end(parent)
    assert player.states(parent, child) == ["succeeded", "queued"]
    assert submission.submit("demo.echo", **unique) == holder


def test_a_retried_workflow_begins_anew_unless_somebody_holds_its_unique_keys(player):
    with Workflow() as flow:
        node = flow.add("demo.echo", name="a", unique_key="key")
    player.end(node, dead=True)
    Task.objects.update(cause="it failed", snoozes=3)
    holder = submission.submit("demo.echo", unique_key="key")
    with pytest.raises(IllegalMove, match="unique key"):
        workflows.retry(Row.objects.get())
    cancel(holder)
    workflows.retry(Row.objects.get())
    assert player.states(node) == ["queued"]
    assert (player.task(node).cause, player.task(node).snoozes) == (None, 0)


def test_a_bad_callback_is_refused_with_the_workflow(transactional_db):
    with pytest.raises(InvalidSubmission) as caught:
        Workflow(on_success=step("demo.compute", {"n": "many"})).submit()
    assert [fault.pointer for fault in caught.value.faults] == ["on_success/data/n"]


def test_an_open_batch_is_finished_when_it_is_closed_and_done(player):
    row = Workflow("batch", open=True, on_complete=step("demo.echo", {"message": "done"})).submit()
    first, second = workflows.Node("1", "demo.echo", None), workflows.Node("2", "demo.echo", None)
    workflows.add_many(row, [first])
    player.settle()
    player.end(first)
    assert (row.state, counts(row)) == ("open", (1, 1, 0, 0, 0))
    workflows.add_many(row, [second])
    workflows.close(row)
    assert row.state == "running"
    with pytest.raises(Conflict, match="closed"):
        workflows.add_many(row, [workflows.Node("3", "demo.echo", None)])
    player.settle()
    player.end(second)
    row.refresh_from_db()
    assert (row.state, called(row)) == ("succeeded", ["done"])


def test_an_empty_workflow_is_done_at_once(transactional_db):
    row = Workflow(on_success=step("demo.echo", {"message": "nothing to do"})).submit()
    assert row.state == "succeeded"
    assert called(row) == ["nothing to do"]


def test_two_that_settle_at_once_count_everything_once(player):
    with Workflow() as flow:
        nodes = [flow.add("demo.echo") for _ in range(50)]
        last = flow.add("demo.echo", after=nodes)
    tasks = [player.task(node) for node in nodes]
    player.worker.end(player.worker.run(*tasks))
    from capataz import database

    together(*(lambda: settling.settle(database.driver()) for _ in range(3)))
    player.settle()
    assert counts(Row.objects.get(pk=flow.id)) == (51, 50, 0, 0, 0)
    assert player.states(last) == ["queued"]


def test_a_child_that_somebody_has_locked_is_released_afterwards(player, locked):
    with Workflow() as flow:
        a = flow.add("demo.echo")
        b = flow.add("demo.echo", after=[a])
    with locked(player.task(b)):
        player.end(a)
        assert player.states(b) == ["blocked"]
    player.settle()
    assert player.states(b) == ["queued"]


def test_a_running_task_adds_others_once_however_often_it_is_tried(player):
    with Workflow() as flow:
        a = flow.add("demo.echo", name="a")
    player.worker.run(player.task(a))
    for attempt in (1, 2):
        running = RunningTask(id=a.id, type="demo.echo", attempt=attempt, starts=attempt)
        running.add_task = lambda type, data, running=running, **options: workflows.add_to(
            running, type, data, **options
        )
        first = running.add("demo.echo")
        named = running.add("demo.echo", name="named")
        at_once = running.add("demo.echo", after=())
    assert Task.objects.filter(workflow_id=flow.id).count() == 4
    player.settle()
    assert counts(Row.objects.get(pk=flow.id)) == (4, 0, 0, 0, 0)
    states = dict(Task.objects.values_list("pk", "state"))
    assert (states[first], states[named], states[at_once]) == ("blocked", "blocked", "queued")
    [run] = Task.objects.filter(pk=a.id).values_list("run", flat=True)
    from capataz.lifecycle import execution
    from capataz.lifecycle.execution import Finish

    execution.finish(
        player.session, [Finish(a.id, run or 0, State.SUCCEEDED, Outcome.SUCCEEDED, started_ago=1.0)]
    )
    player.settle()
    assert set(Task.objects.filter(pk__in=[first, named]).values_list("state", flat=True)) == {"queued"}


def test_a_task_without_a_workflow_gets_one_when_it_adds_another(player):
    from tests.lifecycle.stage import tasks

    [task] = tasks(1)
    [grant] = player.worker.run(task)
    running = RunningTask(id=task.pk, type="demo.echo", attempt=1, starts=1)
    added = workflows.add_to(running, "demo.echo")
    player.settle()
    assert Task.objects.get(pk=added).state == "blocked"
    player.worker.end([grant])
    player.settle()
    assert Task.objects.get(pk=added).state == "queued"
    assert Row.objects.get().total == 2


SABOTAGE = {
    "a blocked task without open parents": "UPDATE capataz_dependency SET outcome = 'succeeded'",
    "a dependency that says nothing": "UPDATE capataz_dependency SET outcome = NULL",
    "a parent that is gone": "DELETE FROM capataz_task WHERE node = 'a'",
    "counts that are wrong": "UPDATE capataz_workflow SET total = 9, succeeded = 7, dead = 3",
}


@pytest.mark.parametrize("how", SABOTAGE)
def test_what_was_sabotaged_is_mended(player, how):
    with Workflow() as flow:
        a, other = flow.add("demo.echo", name="a"), flow.add("demo.echo", name="other")
        b = flow.add("demo.echo", name="b", after={a: "run"})
    player.worker.end(player.worker.run(player.task(a)))
    if "gone" not in how:
        # Everything is settled but the child, as if it had been forgotten.
        Task.objects.filter(pk=a.id).update(settled_at=Now(), settled_as="succeeded")
        with connection.cursor() as cursor:
            cursor.execute("UPDATE capataz_task SET settled_at = finished_at WHERE node = 'a'")
    with connection.cursor() as cursor:
        cursor.execute(SABOTAGE[how])
    player.settle()
    if "counts" not in how:
        assert player.states(b) == ["blocked"]
    assert sum(settling.repair(player.session).values()) > 0
    assert player.states(b) == ["queued"]
    player.end(b)
    player.end(other)
    row = Row.objects.get(pk=flow.id)
    assert row.state == "succeeded"
    assert settling.repair(player.session) == dict.fromkeys(
        ["orphans", "dependencies", "blocked", "counts"], 0
    )


def test_five_thousand_nodes_are_submitted_and_settled_in_seconds(player, measured):
    began = time.monotonic()
    with Workflow() as flow:
        layer = [flow.add("demo.echo") for _ in range(50)]
        for _ in range(99):
            layer = [
                flow.add("demo.echo", after=[each, layer[0]] if each is not layer[0] else [each])
                for each in layer
            ]
    measured("5,000 nodes submitted", time.monotonic() - began, 2)
    assert Task.objects.filter(workflow_id=flow.id, state="blocked").count() == 4950
    began = time.monotonic()
    workflows.cancel(Row.objects.get(pk=flow.id))
    player.settle()
    measured("5,000 nodes cancelled and settled", time.monotonic() - began, 2)
    assert counts(Row.objects.get(pk=flow.id)) == (5000, 0, 0, 5000, 0)


def test_numbers_of_both_kinds_may_stand_beside_each_other(transactional_db):
    with Workflow() as flow:
        flow.add("demo.echo", delay=60, time_limit=5)
        flow.add("demo.echo", delay=0.5, time_limit=5.5)
    assert Task.objects.filter(workflow_id=flow.id, state="scheduled").count() == 2


def test_parents_are_kept_as_long_as_somebody_may_ask_for_their_results(player):
    from datetime import timedelta

    from capataz.lifecycle import retention

    def prune() -> int:
        return retention._prune_state(State.SUCCEEDED, timedelta(0), 10, lambda: False)

    with Workflow() as flow:
        a, other = flow.add("demo.echo"), flow.add("demo.echo")
        b = flow.add("demo.echo", after=[a])
    player.end(a)
    player.end(b, dead=True)
    assert prune() == 0
    player.end(other)
    assert Row.objects.get(pk=flow.id).state == "failed"
    assert prune() == 1
    assert player.states(a, b) == ["succeeded", "dead"]
    retry(player.task(b))
    player.settle()
    player.end(b)
    assert prune() == 2
    assert not Dependency.objects.exists()
    Row.objects.update(finished_at=Now() - timedelta(days=2))
    retention._prune_workflows()
    assert not Row.objects.exists()


def test_nobody_settles_while_another_one_does(player, session, worker):
    with Workflow() as flow:
        a = flow.add("demo.echo")
    cancel(player.task(a))
    with worker.connection.transaction():
        worker.connection.execute("SELECT pg_advisory_xact_lock(%s)", [settling.LOCK])
        assert (player.settle(), settling.repair(session)) == (0, {})
    assert player.settle() == 1
