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
    """How many rows there are. One that is not exact is an estimate, or there are more."""

    value: int
    exact: bool

    def __str__(self) -> str:
        return f"{self.value:,}" if self.exact else f"about {self.value:,}"


def count(queryset: QuerySet[Any]) -> Count:
    """How many rows ``queryset`` has, without ever reading a big table from end to end."""
    some = queryset.order_by()[: CAP + 1]
    if _price(some) <= CHEAP:
        found = some.count()
        if found <= CAP:
            return Count(found, exact=True)
        return Count(max(found, _expected_rows(queryset)), exact=False)
    return Count(_expected_rows(queryset), exact=False)


def _price(queryset: QuerySet[Any]) -> float:
    return float(_plan(queryset)["Total Cost"])


def _expected_rows(queryset: QuerySet[Any]) -> int:
    return int(_plan(queryset.order_by())["Plan Rows"])


def _plan(queryset: QuerySet[Any]) -> dict[str, Any]:
    [explained] = json.loads(queryset.values("pk").explain(format="json"))
    plan: dict[str, Any] = explained["Plan"]
    return plan
