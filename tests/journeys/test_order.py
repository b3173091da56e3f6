"""Priority, bundles, and a pool that follows the work."""

import contextlib
import time
from itertools import pairwise

import psutil

from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Event, Task


def test_an_urgent_task_overtakes_a_backlog(platform, eventually):
    platform.start_dispatcher()
    submit_many(Submission(type="demo.sleep", data={"seconds": 0.02}, priority=0) for _ in range(5000))
    platform.start_worker("2,2")
    eventually(lambda: Task.objects.filter(state="succeeded").count() >= 100)

    urgent = submit("demo.echo", {"message": "now"}, priority=10)
    eventually(lambda: Task.objects.get(pk=urgent.pk).state == "succeeded")

    urgent.refresh_from_db()
    between = Task.objects.filter(
        priority=0, started_at__gt=urgent.created_at, started_at__lt=urgent.started_at
    ).count()
    # Two children, each with at most one bundle of about 100 ms, which is 5 tasks of 20 ms, before it;
    # and what they start while the dispatcher is woken and Redis is read.
    assert between <= 40
    assert Task.objects.filter(state="queued").count() > 3000


def test_short_tasks_travel_in_bundles_and_are_recorded_one_by_one(platform, records, eventually):
    platform.start_dispatcher()
    platform.start_worker("2,2")
    records.submit(1500)
    eventually(records.all_succeeded)
    records.check()
    with_true_times = Task.objects.filter(pk__in=records.ids, started_at__isnull=False)
    assert with_true_times.count() == 1500
    assert not any(task.run_time.total_seconds() < 0 for task in with_true_times)


def test_the_pool_grows_with_the_work_and_shrinks_under_a_trickle(platform, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("10,2")
    assert worker.worker().max_concurrency == 10
    submit_many(Submission(type="demo.sleep", data={"seconds": 1}) for _ in range(60))
    eventually(lambda: len(living(worker)) == 10)
    eventually(lambda: Task.objects.filter(state="succeeded").count() == 60)
    trickle = []

    def shrunk():
        if not trickle or time.monotonic() - trickle[-1] >= 1:
            trickle.append(time.monotonic())
            submit("demo.sleep", {"seconds": 0.1})
        return len(living(worker)) == 2

    eventually(shrunk)
    eventually(lambda: not Task.objects.exclude(state="succeeded").exists())
    assert Task.objects.filter(losses__gt=0).count() == 0
    changes = Event.objects.filter(kind="worker.scaled").order_by("id").values_list("detail", flat=True)
    eventually(lambda: changes.count() and changes.last()["after"] == 2)
    steps = [(change["before"], change["after"]) for change in changes]
    assert steps[0][0] == 2
    assert max(after for _, after in steps) == 10
    assert all(after == before for (_, after), (before, _) in pairwise(steps))


def living(worker):
    found = []
    for child in worker.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_progress_is_shown_while_a_task_runs(platform, eventually, tmp_path):
    platform.start_dispatcher()
    platform.start_worker("1,1")
    gate = tmp_path / "gate"
    task = submit("testing.progress", {"gate": str(gate)})
    eventually(lambda: Task.objects.get(pk=task.pk).progress == 40)
    assert Task.objects.get(pk=task.pk).progress_message == "nearly half"
    gate.touch()
    eventually(lambda: Task.objects.get(pk=task.pk).state == "succeeded")


def test_async_handlers_are_awaited(platform, eventually):
    platform.start_dispatcher()
    platform.start_worker("1,1")
    task = submit("testing.async_sum", {"numbers": [1, 2, 3]})
    eventually(lambda: Task.objects.get(pk=task.pk).result == 6)


def test_a_running_task_is_cancelled(platform, eventually, tmp_path):
    from capataz.lifecycle.cancellation import cancel

    platform.start_dispatcher()
    worker = platform.start_worker("2,2")
    running = submit("testing.gate", {"file": "cancelled.log", "gate": str(tmp_path / "never")})
    waiting = submit("demo.echo", {"message": "x"}, delay=600)
    eventually(lambda: Task.objects.get(pk=running.pk).state == "running")
    assert cancel(Task.objects.get(pk=waiting.pk)).state == "cancelled"
    cancel(Task.objects.get(pk=running.pk), reason="no longer wanted")
    eventually(lambda: Task.objects.get(pk=running.pk).state == "cancelled")
    running.refresh_from_db()
    assert (running.attempts, running.losses) == (0, 0)
    assert worker.is_alive()
