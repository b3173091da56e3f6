"""The census: how many tasks stand where, at a price that does not grow with the history."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Q

from capataz.models import Task
from capataz.models.counting import Count, count
from capataz.states import State

# The conditions name what the partial indexes of the table name. By the table's constraints they say no
# more than the state: what is held is released, and what is queued is either released or not.
_QUEUED = (
    Q(state=State.QUEUED, released_at__isnull=True),
    Q(state=State.QUEUED, released_at__isnull=False, worker_id__isnull=True),
)
_HELD = Q(released_at__isnull=False, worker_id__isnull=False)

LINES: dict[str, tuple[Q, ...]] = {
    "Scheduled": (Q(state=State.SCHEDULED),),
    "Queued": _QUEUED,
    "Claimed": (_HELD & Q(state=State.CLAIMED),),
    "Running": (_HELD & Q(state=State.RUNNING),),
    "Retrying": (Q(state=State.RETRYING),),
    "Succeeded": (Q(state=State.SUCCEEDED),),
    "Dead": (Q(state=State.DEAD),),
    "Cancelled": (Q(state=State.CANCELLED),),
    "Expired": (Q(state=State.EXPIRED),),
}


@dataclass(frozen=True)
class Line:
    """How many tasks are in one state."""

    name: str
    count: Count


def census() -> list[Line]:
    """A line for each state that tasks can be in."""
    return [Line(name, _total(conditions)) for name, conditions in LINES.items()]


def _total(conditions: tuple[Q, ...]) -> Count:
    return sum((count(Task.objects.filter(condition)) for condition in conditions), start=Count(0))
