"""Dead letters as a place to work: grouped by cause, replayed, discarded, and acted on by the thousand."""

import uuid

import pytest
from django.db.models.functions import Now

from capataz.errors import IllegalMove, InvalidSubmission
from capataz.handlers import RunningTask
from capataz.lifecycle import bulk, cancellation
from capataz.lifecycle.bulk import Action
from capataz.lifecycle.discarding import discard
from capataz.lifecycle.replay import replay
from capataz.lifecycle.retry import retry
from capataz.lifecycle.selection import Selection
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Event, Task
from capataz.models.dead_letters import dead_letter_groups
from tasks.bulk import BulkAction, act_on_many
from tests.records import state

pytestmark = pytest.mark.django_db


def dead(count=1, cause="ValueError in f (a/b.py)", data=None, **options):
    ids = submit_many(
        [Submission(type="demo.echo", data=data or {"message": n}, **options) for n in range(count)]
    )
    Task.objects.filter(pk__in=ids).update(
        state="dead", cause=cause, error="ValueError: x", finished_at=Now()
    )
    return list(Task.objects.filter(pk__in=ids).order_by("pk"))


def states():
    return sorted(Task.objects.values_list("state", flat=True))


def act(action, name="name", **selection):
    return bulk.act(Action(action), Selection(**selection), name=name, by="ann")


@pytest.mark.django_db(transaction=True)
def test_what_workers_let_die_is_grouped_by_type_and_cause(platform, eventually):
    failing = [Submission(type="demo.fail", data={"times": 9}, max_attempts=1) for _ in range(3)]
    ids = submit_many([*failing, Submission(type="demo.crash", data={"times": 9})])
    platform.start_worker("2,2"), platform.start_dispatcher()
    eventually(lambda: Task.objects.filter(pk__in=ids, state="dead").count() == 4)
    groups = dead_letter_groups()
    assert [(group.type, group.count) for group in groups] == [("demo.fail", 3), ("demo.crash", 1)]
    assert groups[0].cause.endswith("(tasks/demo.py)") and set(groups[0].examples) == set(ids[:3])
    assert groups[1].cause.startswith("quarantined after # deaths")


def test_a_task_that_is_retried_is_in_no_group():
    [task] = dead()
    retry(task)
    assert dead_letter_groups() == [] and Task.objects.get(pk=task.pk).cause is None


def test_a_replay_is_a_new_task_linked_to_the_old_one():
    [old] = dead(priority=9, max_attempts=7, backoff="fixed", remove_on_complete=5)
    new = replay(old, by="ann")
    assert (new.replay_of, new.payload, new.priority, new.max_attempts) == (old.pk, old.payload, 9, 7)
    assert (new.backoff, new.keep) == (old.backoff, old.keep) and new.keep["succeeded"]["count"] == 5
    assert state(old) == "dead" and state(new) == "queued"
    assert Event.objects.get(kind="task.replayed").detail["replay"] == str(new.pk)


def test_a_replay_may_have_another_payload_which_is_checked():
    task = submit("demo.sleep", {"seconds": 1})
    cancellation.cancel(task)
    assert replay(task, data={"seconds": 2}).payload == {"seconds": 2}
    with pytest.raises(InvalidSubmission, match="greater than or equal"):
        replay(task, data={"seconds": -1})


def test_sensitive_values_are_sealed_for_the_new_task():
    old = submit("testing.login", {"user": "ann", "password": "hunter2"})
    cancellation.cancel(old)
    new = replay(old)
    assert new.payload["password"] != old.payload["password"]
    assert replay(new_cancelled := cancellation.cancel(new)).replay_of == new_cancelled.pk  # it can be opened


def test_what_may_still_end_well_is_not_replayed():
    with pytest.raises(IllegalMove, match="may still end well"):
        replay(submit("demo.echo"))


def test_discarding_takes_a_dead_letter_away_and_keeps_its_history():
    [task] = dead()
    assert discard(discard(task, by="ann")).error == "ValueError: x"
    assert state(task) == "cancelled" and dead_letter_groups() == []
    assert Event.objects.filter(kind="task.discarded").count() == 1
    retry(task)
    assert state(task) == "queued"


@pytest.mark.parametrize("now", ["queued", "succeeded"])
def test_only_the_dead_are_discarded(now):
    task = submit("demo.echo")
    if now == "succeeded":
        Task.objects.update(state=now, finished_at=Now())
    with pytest.raises(IllegalMove, match=f"it is {now}"):
        discard(task)
    assert state(task) == now


def test_bulk_actions_do_what_they_are_meant_for_and_leave_the_rest():
    dead(3), submit("demo.echo")
    assert act("cancel", type="demo.echo").done == 1
    assert act("discard", cause="another").done == 0
    assert states() == ["cancelled", *["dead"] * 3]
    assert act("retry", status=["dead"]).done == 3
    assert act("retry", status=["dead"]).done == 0


def test_more_than_a_batch_is_acted_on(monkeypatch):
    monkeypatch.setattr(bulk, "BATCH", 2)
    dead(5)
    reports = []
    done = bulk.act(
        Action.DISCARD, Selection(type="demo.echo"), name="n", by="", report=lambda d: reports.append(d.done)
    )
    assert done.done == 5 and reports == [2, 4, 5] and states() == ["cancelled"] * 5


def test_replaying_again_under_the_same_name_replays_nothing_twice():
    dead(3)
    assert act("replay", status=["dead"], name="one").done == 3
    assert act("replay", status=["dead"], name="one").done == 3
    assert Task.objects.exclude(replay_of=None).count() == 3
    act("replay", status=["dead"], name="two")
    assert Task.objects.exclude(replay_of=None).count() == 6


def test_who_refuses_is_named_and_the_others_are_done():
    _, bad = dead(2)
    Task.objects.filter(pk=bad.pk).update(type="gone.type")
    done = act("replay", status=["dead"])
    assert (done.done, done.refused) == (1, 1)
    assert done.refusals[0]["id"] == str(bad.pk) and "gone.type" in done.refusals[0]["reason"]


def test_the_task_reports_its_progress_and_what_it_did():
    dead(3)
    told = []
    task = RunningTask(uuid.uuid4(), "bulk_action", 1, 1, lambda *said: told.append(said))
    result = act_on_many(task, BulkAction(action="discard", filter={"status": ["dead"]}, by="ann"))
    assert result == {"done": 3, "refused": 0, "refusals": []} and told == [(99, "3 done, 0 refused")]
    assert Event.objects.filter(kind="task.discarded").first().detail["by"] == "ann"


def test_a_rate_is_kept(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    dead(3)
    bulk.act(Action.DISCARD, Selection(status=["dead"]), name="n", by="", per_second=2)
    assert 1 < sum(slept) <= 1.5
