"""A new version is rolled out: some workers know types that others do not know yet."""

import json
import uuid

import pytest
from django.contrib.auth.models import User
from django.test import Client

from capataz import pointer
from capataz.api.schemas import TaskOut
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Attempt, Role, Task, Token

OLD = {"CAPATAZ_HANDLERS": "tasks"}  # knows demo.*, and no testing.*


@pytest.fixture
def shown(platform):
    """A task as the API and the admin show it."""
    _, secret = Token.issue(name="viewer", role=Role.VIEWER)
    admin = Client()
    admin.force_login(User.objects.create_superuser("root"))

    def look(task):
        answer = Client().get(f"/api/v1/tasks/{task.pk}", headers={"Authorization": f"Bearer {secret}"})
        document = json.loads(answer.content)
        TaskOut.model_validate(document)
        page = admin.get(f"/admin/capataz/task/{task.pk}/change/").content.decode()
        assert (document["obstacle"] or "-") in page
        return document["status"], document["obstacle"]

    return look


def test_a_type_that_no_worker_knows_yet_waits_visibly_and_runs_once_one_does(
    platform, eventually, shown, broker
):
    platform.start_dispatcher()
    old = platform.start_worker("1,1", **OLD)
    task = submit("testing.pid", {})
    known = submit("demo.echo", {"message": "known"})
    eventually(lambda: Task.objects.get(pk=known.pk).is_final)
    assert shown(task) == ("pending", "no running worker of the queue default knows the type testing.pid")
    assert shown(known) == ("completed", None)

    # A message that comes too early, or is forged, changes nothing, under its own type's name or another's.
    for name in ("testing.pid", "demo.echo"):
        broker.lpush("default", pointer.encode(name, "default", 0, [task.pk, uuid.uuid4()]))
    eventually(lambda: not broker.exists("default"))
    after = submit("demo.echo", {"message": "after"})
    eventually(lambda: Task.objects.get(pk=after.pk).is_final)
    task.refresh_from_db()
    assert (task.state, task.released_at, task.attempts) == ("queued", None, 0)

    new = platform.start_worker("1,1")
    eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")
    assert shown(task) == ("completed", None)
    assert Attempt.objects.get(task_id=task.pk).worker_id == new.worker().pk
    assert old.is_alive()


def test_old_and_new_workers_side_by_side_leave_no_task_behind(platform, records, eventually):
    """Both take from the same list, so that the old one gets messages that only the new one understands."""
    dispatcher = platform.start_dispatcher(
        CAPATAZ_VERIFY_FIRST_SECONDS="60", CAPATAZ_VERIFY_LONGEST_SECONDS="3600"
    )
    old, new = platform.start_worker("1,1", wait=False, **OLD), platform.start_worker("1,1", wait=False)
    for worker in (old, new):
        platform.wait_until_ready(worker)
    ids = submit_many(Submission(type="testing.flaky", data={"times": 0}) for _ in range(10))
    records.submit(10)
    eventually(lambda: Task.objects.filter(pk__in=ids, state="succeeded").count() == len(ids))
    eventually(records.all_succeeded)
    records.check()
    assert set(Attempt.objects.filter(task_id__in=ids).values_list("worker_id", flat=True)) == {
        new.worker().pk
    }
    assert "passes a pointer to the unknown type" in old.log.read_text()
    assert "unclaimed tasks again" not in dispatcher.log.read_text()  # that would have come to it by itself
