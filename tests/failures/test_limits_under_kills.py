"""Limits with real workers, two dispatchers, and one worker that is killed in between."""

from collections.abc import Callable
from typing import Any

from capataz.lifecycle.overriding import override
from capataz.models import Task
from tests.processes import Processes
from tests.records import Records


def most_at_once(records: Records) -> int:
    """How many runs overlapped at most. Of a run that was killed nobody wrote the end: it does not count."""
    lines = records.lines()
    last = {about: place for place, (word, about, *_) in enumerate(lines) if word == "start"}
    running: set[str] = set()
    most = 0
    for place, (word, about, *_) in enumerate(lines):
        if word == "end":
            running.discard(about)
        elif place == last[about]:
            running.add(about)
        most = max(most, len(running))
    return most


def test_a_limit_holds_while_workers_are_killed(
    platform: Processes, records: Records, eventually: Callable[..., Any]
) -> None:
    override("demo.record", {"limits": [{"concurrency": 3}]})
    for _ in range(2):
        platform.start_dispatcher()
    doomed, _ = platform.start_worker(), platform.start_worker()
    records.submit(12, seconds=0.2)
    records.submit(12, seconds=0.2, queue="email")
    eventually(lambda: Task.objects.filter(state="succeeded").count() >= 4)
    doomed.kill()
    eventually(records.all_succeeded)
    records.check()
    assert most_at_once(records) == 3
