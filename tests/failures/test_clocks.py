"""Hosts whose clocks are wrong: only the database's clock decides."""

import os
from datetime import timedelta

import pytest

from capataz.database import database_now
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, Task, Worker
from tests.processes import database_environment

HOUR = 3600


@pytest.fixture
def with_a_clock_that_is_off(tmp_path):
    """The environment of a process whose every module sees another time."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "real, shift = time.time, float(os.environ['CLOCK_SHIFT'])\n"
        "time.time = lambda: real() + shift\n"
    )
    path = os.pathsep.join([str(tmp_path), database_environment()["PYTHONPATH"]])
    return lambda seconds: {"PYTHONPATH": path, "CLOCK_SHIFT": str(seconds)}


def test_workers_whose_clocks_are_an_hour_off_do_as_all_others(
    platform, records, eventually, with_a_clock_that_is_off
):
    platform.start_dispatcher(**with_a_clock_that_is_off(-HOUR))
    fast = platform.start_worker("1,1", wait=False, **with_a_clock_that_is_off(HOUR))
    slow = platform.start_worker("1,1", wait=False, **with_a_clock_that_is_off(-HOUR))
    for worker in (fast, slow):
        platform.wait_until_ready(worker)
    began = database_now()
    delayed = submit("demo.echo", {"message": "in a moment"}, delay=2)
    later = submit("demo.echo", {"message": "in half an hour"}, delay=HOUR / 2)
    lasting = submit("demo.echo", {"message": "x"}, expires_at=began + timedelta(minutes=10))
    retried = submit("testing.flaky", {"times": 1})
    records.submit(40, seconds=0.02)

    for task in (delayed, lasting, retried):
        eventually(lambda task=task: Task.objects.get(pk=task.pk).state == "succeeded")
    eventually(records.all_succeeded)
    records.check()
    delayed.refresh_from_db()
    assert delayed.started_at >= began + timedelta(seconds=2)
    assert Task.objects.get(pk=later.pk).state == "scheduled"
    for attempt in Attempt.objects.all():
        assert began <= attempt.started_at <= attempt.finished_at <= database_now()
    assert set(Worker.objects.values_list("state", flat=True)) == {"running"}
    assert Attempt.objects.values("worker_id").distinct().count() == 2
