"""Cancelling what runs: first the handler is told, then it is interrupted, then its process is killed."""

import uuid

import pytest

from capataz.errors import ConfigurationError, TaskCancelled
from capataz.handlers import MAX_CANCEL_GRACE, RunningTask, handler
from capataz.lifecycle.cancellation import cancel
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests.records import outcomes, state
from tests.workload import notes

ENDS = {
    "stop": (["start", "cancelled", "interrupted"], "cancelled"),
    "return": (["start", "cancelled"], "succeeded"),
    "ignore": (["start", "interrupted"], "cancelled"),
}


@pytest.mark.django_db(transaction=True)
def test_a_cooperative_handler_is_told_then_interrupted_then_killed(platform, eventually):
    tasks = {then: submit("testing.patient", {"file": f"{uuid.uuid4()}", "then": then}) for then in ENDS}
    platform.start_worker("3,3"), platform.start_dispatcher()
    files = {then: task.payload["file"] for then, task in tasks.items()}
    eventually(lambda: all(notes(file) for file in files.values()))
    eventually(lambda: {state(each) for each in tasks.values()} == {"running"})
    for task in tasks.values():
        cancel(task)
    eventually(lambda: not Task.objects.filter(finished_at=None).exists())
    for then, (said, end) in ENDS.items():
        assert (notes(files[then]), state(tasks[then])) == (said, end), then
    assert outcomes(tasks["ignore"]) == ["cancelled"]


def test_the_flag_stops_where_the_handler_asks():
    task = RunningTask(uuid.uuid4(), "x", 1, 1)
    task.stop_if_cancelled()
    task.cancelled = True
    with pytest.raises(TaskCancelled):
        task.stop_if_cancelled()


@pytest.mark.parametrize("grace", [-1, MAX_CANCEL_GRACE + 1])
def test_a_grace_that_makes_no_sense_is_refused(grace):
    with pytest.raises(ConfigurationError, match=r"cancel_grace of .* must be 0 to 600"):
        handler("testing.graceless", cancel_grace=grace)
