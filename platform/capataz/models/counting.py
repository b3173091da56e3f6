"""Counting: exactly what is cheap to count, and the planner's estimate of the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

# Nobody acts differently on 10,001 rows than on 10,000.
CAP = 10_000
# In the planner's unit, the price of reading one page in order. So many take well under a second.
CHEAP = 30_000.0


@dataclass(frozen=True)
class Count:
    """How many rows there are: exactly, at least, or by the planner's estimate."""

    value: int
    exact: bool = True
    estimated: bool = False

    def __str__(self) -> str:
        if self.estimated:
            return f"about {self.value:,}"
        return f"{self.value:,}" if self.exact else f"{self.value:,}+"

    def __add__(self, other: Count) -> Count:
        return Count(self.value + other.value, self.exact and other.exact, self.estimated or other.estimated)


def count(queryset: QuerySet[Any]) -> Count:
    """How many rows ``queryset`` has, without ever reading a big table from end to end.

    Counts up to ``CAP``. Where even that is dear, because few of many rows fit, the estimate has to do.
    """
    everything = queryset.order_by()
    some = everything[: CAP + 1]
    price, _ = _plan(some)
    if price > CHEAP:
        _, expected = _plan(everything)
        return Count(expected, exact=False, estimated=True)
    found = some.count()
    return Count(min(found, CAP), exact=found <= CAP)


def _plan(queryset: QuerySet[Any]) -> tuple[float, int]:
    """What the planner thinks of a question: its price, and how many rows will come."""
    explained = queryset.values("pk").explain(format="json")
    if not explained:  # Django knows that nothing will come, and asks nobody
        return 0.0, 0
    plan = json.loads(explained)[0]["Plan"]
    return float(plan["Total Cost"]), int(plan["Plan Rows"])
