"""All tasks to files, and back: what is read is what was written."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.functions import Now

from capataz.lifecycle import exchange, settling
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.lifecycle.workflows import Workflow, step
from capataz.models import Attempt, Dependency, Task
from capataz.models import Workflow as Row
from capataz.states import State

pytestmark = pytest.mark.django_db(transaction=True)
HELD = {"run": 7, "worker_id": 1, "released_at": Now()}


@pytest.fixture
def everything(transactional_db):
    """A task in every state, with what JSON can hold, and one with attempts."""
    submit(
        "demo.echo", {"message": [1e300, 2**60, 0.1, "ñ\n\u2028", None, {"a": []}]}, key="a key", priority=9
    )
    for state in State:
        task = submit("testing.login", {"user": state, "password": "hunter2"})
        changes = {"state": state, **(HELD if state in ("claimed", "running") else {})}
        if state in ("succeeded", "dead", "cancelled", "expired"):
            changes |= {"finished_at": Now(), "error": "an error", "result": {"x": 1.5}}
        Task.objects.filter(pk=task.pk).update(**changes)
    for outcome in ("failed", "succeeded"):
        times = {"started_at": Now(), "finished_at": Now()}
        Attempt.objects.create(task_id=task.pk, run=1, worker_id=1, outcome=outcome, error="e", **times)


def rows():
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_jsonb(t)::text FROM capataz_task t ORDER BY id")
        tasks = cursor.fetchall()
        cursor.execute("SELECT (to_jsonb(a) - 'id')::text FROM capataz_attempt a ORDER BY id")
        return tasks, cursor.fetchall()


def test_a_round_trip_loses_nothing(everything, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "AT_ONCE", 2)
    Task.objects.filter(state__in=["claimed", "running"]).delete()
    before = rows()
    call_command("tasks", "export", str(tmp_path))
    Task.objects.all().delete(), Attempt.objects.all().delete()
    call_command("tasks", "import", str(tmp_path))
    assert rows() == before


def test_the_files_have_the_tasks_by_what_became_of_them(everything, tmp_path):
    call_command("tasks", "export", str(tmp_path))
    states = {
        name: {each["state"] for each in json.loads((tmp_path / name).read_text())} for name in exchange.FILES
    }
    assert states == {
        "pending-tasks.json": {"scheduled", "blocked", "queued", "claimed", "running", "retrying"},
        "completed-tasks.json": {"succeeded"},
        "failed-tasks.json": {"dead", "cancelled", "expired"},
    }
    assert "hunter2" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_what_was_held_waits_again_and_what_is_there_stays_as_it_is(everything, tmp_path):
    exchange.write(tmp_path)
    kept = Task.objects.get(state="dead")
    Task.objects.filter(pk=kept.pk).update(error="another error")
    Task.objects.exclude(pk=kept.pk).delete()
    assert sum(exchange.read(tmp_path).values()) == len(State)  # the one with a key too, without the one kept
    assert Task.objects.get(pk=kept.pk).error == "another error"
    assert Task.objects.filter(state="queued", run=None).count() == 4
    assert sum(exchange.read(tmp_path).values()) == 0
    assert Attempt.objects.filter(outcome="succeeded").count() == 2


def test_a_workflow_goes_on_where_it_was(transactional_db, tmp_path):
    with Workflow("trip", on_success=step("demo.echo")) as flow:
        first = flow.add("demo.echo", name="first")
        flow.add("demo.echo", after=[first], feed=True)
    Task.objects.filter(pk=first.id).update(state="succeeded", finished_at=Now(), result=1)
    kept = [(model, list(model.objects.values())) for model in (Task, Row, Dependency)]
    exchange.write(tmp_path)
    for model, _ in kept:
        model.objects.all().delete()
    exchange.read(tmp_path)
    for model, before in kept:
        after = list(model.objects.values())
        for each in (*before, *after):
            each.pop("id") if model is Dependency else None
        assert after == before
    settling.settle(connection.connection)
    assert sorted(Task.objects.values_list("state", flat=True)) == ["queued", "succeeded"]


def test_a_task_whose_unique_key_is_held_is_added_without_it(transactional_db, tmp_path):
    written = [submit("demo.echo", {"message": n}, unique_key=f"key {n}") for n in (1, 2)]
    exchange.write(tmp_path)
    Task.objects.all().delete()
    holder = submit("demo.echo", unique_key="key 1")
    assert exchange.read(tmp_path)["pending-tasks.json"] == 2
    keys = dict(Task.objects.values_list("pk", "unique_key"))
    assert [keys[task.pk] for task in (holder, *written)] == [holder.unique_key, None, written[1].unique_key]


def test_nothing_is_an_empty_array(transactional_db, tmp_path):
    assert set(exchange.write(tmp_path).values()) == {0}
    assert (tmp_path / "pending-tasks.json").read_text() == "[]\n"
    assert set(exchange.read(tmp_path).values()) == {0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[\n{}\n1\n]", "line 3: is not a task"),
        ("{", "line 1: is not a task"),
        ('[\n{"id": "no uuid"}\n]', "cannot be kept by the database"),
        ("[\n{}\n]", "cannot be kept by the database: null value"),
    ],
)
def test_what_is_no_such_file_is_refused_whole(text, said, tmp_path):
    submit_many([Submission(type="demo.echo")])
    exchange.write(tmp_path)
    Task.objects.all().delete()
    (tmp_path / "failed-tasks.json").write_text(text)
    with pytest.raises(CommandError, match=said):
        call_command("tasks", "import", str(tmp_path))
    assert not Task.objects.exists()


def test_a_missing_folder_is_named(transactional_db, tmp_path):
    with pytest.raises(CommandError, match=r"pending-tasks\.json"):
        call_command("tasks", "import", str(tmp_path))
