"""What handlers and clients say about the next attempt, with a real worker."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

from django.utils import timezone

from capataz.lifecycle.submission import submit
from capataz.models import Event, Task
from tests.processes import Processes
from tests.records import outcomes
from tests.workload import notes

Eventually = Callable[..., Any]


class Story:
    """A task whose starts go as told, and when they were."""

    def __init__(self, *steps: tuple[str, float], **options: Any) -> None:
        self.file = f"{uuid.uuid4().hex}.log"
        payload = {"steps": [list(step) for step in steps], "file": self.file}
        self.task = submit("testing.verdict", payload, **options)

    def is_over(self) -> bool:
        self.task.refresh_from_db()
        return self.task.is_final

    def waits(self) -> list[float]:
        """The seconds between the starts."""
        times = [float(line.split()[0]) for line in notes(self.file)]
        return [later - earlier for earlier, later in pairwise(times)]

    def attempts(self) -> list[str]:
        """The number of the attempt at each start."""
        return [line.split()[1] for line in notes(self.file)]


def test_every_way_to_end_an_attempt_leaves_its_own_trace(
    platform: Processes, eventually: Eventually
) -> None:
    platform.start_dispatcher()
    platform.start_worker("4,4")
    asked = Story(("retry in", 0.7), ("retry later", 0.4))
    snoozed = Story(("snooze", 0.3), ("snooze", 0.3), ("other", 0), max_attempts=2)
    discarded = Story(("discard", 0))
    by_rule = Story(("lookup", 0), ("value", 0))
    used_up = Story(("retry in", 0.1), max_attempts=1)
    own = Story(*[("other", 0)] * 3, backoff={"type": "exponential", "delay": 200, "jitter": "none"})
    late = Story(("retry in", 3600), expires_at=timezone.now() + timedelta(seconds=3))
    stories = [asked, snoozed, discarded, by_rule, used_up, own, late]
    eventually(lambda: all(story.is_over() for story in stories))

    assert asked.task.state == "succeeded"
    assert outcomes(asked.task) == ["failed", "failed", "succeeded"]
    assert asked.waits()[0] >= 0.7
    assert asked.waits()[1] >= 0.4

    assert snoozed.task.state == "succeeded"
    assert outcomes(snoozed.task) == ["snoozed", "snoozed", "failed", "succeeded"]
    assert (snoozed.task.snoozes, snoozed.task.attempts) == (2, 2)
    assert snoozed.attempts() == ["1", "1", "1", "2"]
    assert min(snoozed.waits()[:2]) >= 0.3
    assert Event.objects.filter(task_id=snoozed.task.pk, kind="task.snoozed").count() == 2

    assert (discarded.task.state, discarded.task.error) == ("dead", "discarded: as told")
    assert (by_rule.task.state, outcomes(by_rule.task)) == ("dead", ["failed", "failed"])  # of 5 attempts
    assert (used_up.task.state, used_up.task.attempts) == ("dead", 1)

    assert own.task.state == "succeeded"
    assert [wait >= least for wait, least in zip(own.waits(), (0.2, 0.4, 0.8), strict=True)] == [True] * 3

    assert (late.task.state, outcomes(late.task)) == ("expired", ["failed"])


def test_a_task_that_is_snoozed_too_often_is_a_dead_letter(
    platform: Processes, eventually: Eventually
) -> None:
    platform.start_dispatcher()
    platform.start_worker("1,1", CAPATAZ_MAX_SNOOZES="2")
    story = Story(*[("snooze", 0)] * 9)
    eventually(story.is_over)
    assert outcomes(story.task) == ["snoozed", "snoozed", "failed"]
    assert Task.objects.get(pk=story.task.pk).error == "has been snoozed 2 times, which is the most"
