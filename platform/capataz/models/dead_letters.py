"""Dead letters: tasks that wait for a person, grouped by what they died of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min

from capataz.models.task import Task
from capataz.states import State

EXAMPLES = 5
MOST_GROUPS = 200


@dataclass(frozen=True)
class DeadLetterGroup:
    """The dead letters of one type and cause; ``examples`` are the newest."""

    type: str
    cause: str | None
    count: int
    first_at: datetime
    last_at: datetime
    examples: list[uuid.UUID]
    error: str | None


def dead_letter_groups() -> list[DeadLetterGroup]:
    """The largest groups of all dead letters, largest first."""
    dead = Task.objects.filter(state=State.DEAD).order_by().values("type", "cause")
    rows = dead.annotate(count=Count("pk"), first=Min("finished_at"), last=Max("finished_at"))
    return [_group({**row}) for row in rows.order_by("-count", "type", "cause")[:MOST_GROUPS]]


def _group(row: dict[str, Any]) -> DeadLetterGroup:
    alike = Task.objects.filter(state=State.DEAD, type=row["type"], cause=row["cause"])
    newest = list(alike.order_by("-finished_at").values_list("pk", "error")[:EXAMPLES])
    return DeadLetterGroup(
        type=row["type"],
        cause=row["cause"],
        count=row["count"],
        first_at=row["first"],
        last_at=row["last"],
        examples=[pk for pk, _ in newest],
        error=newest[0][1] if newest else None,
    )
