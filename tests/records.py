"""Records that ``demo.record`` writes: an independent witness of what ran."""

import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from capataz.lifecycle.submission import Submission, submit_many
from capataz.models import Attempt, Task


def state(task: Task) -> str:
    """Where this task stands now."""
    return Task.objects.get(pk=task.pk).state


def outcomes(task: Task) -> list[str]:
    """How the attempts of this task ended, oldest first."""
    return list(Attempt.objects.filter(task_id=task.pk).order_by("id").values_list("outcome", flat=True))


@dataclass
class Records:
    """What ``demo.record`` wrote, as an independent witness of what ran."""

    file: str = field(default_factory=lambda: f"{uuid.uuid4().hex}.log")
    ids: list[uuid.UUID] = field(default_factory=list)

    def submit(self, count: int, *, seconds: float = 0.0, **options: Any) -> list[uuid.UUID]:
        """Submit so many recording tasks."""
        tasks = (
            Submission(
                type="demo.record",
                data={"file": self.file, "token": f"{len(self.ids) + number}", "seconds": seconds},
                **options,
            )
            for number in range(count)
        )
        ids = submit_many(tasks)
        self.ids += ids
        return ids

    def lines(self) -> list[list[str]]:
        """[start|end, task id, attempt, token] in the order written."""
        path = Path(settings.CAPATAZ_DATA_DIR) / "records" / self.file
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def started(self, task_id: uuid.UUID) -> int:
        return sum(1 for word, about, *_ in self.lines() if word == "start" and about == str(task_id))

    def all_succeeded(self) -> bool:
        return Task.objects.filter(pk__in=self.ids, state="succeeded").count() == len(self.ids)

    def check(self) -> None:
        """Every task succeeded, finished exactly once, and ran completely at least once."""
        states = Counter(Task.objects.filter(pk__in=self.ids).values_list("state", flat=True))
        assert states == {"succeeded": len(self.ids)}
        finishings = Counter(
            Attempt.objects.filter(task_id__in=self.ids, outcome="succeeded").values_list(
                "task_id", flat=True
            )
        )
        assert set(finishings.values()) == {1}
        assert len(finishings) == len(self.ids)
        ended = {about for word, about, *_ in self.lines() if word == "end"}
        assert ended >= {str(task_id) for task_id in self.ids}
