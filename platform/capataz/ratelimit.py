"""Rates for any code, such as a web view: exact however many ask at once, since PostgreSQL decides."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from capataz import database
from capataz.flow import Limit
from capataz.sql import statement


@dataclass(frozen=True)
class Answer:
    """Whether something may be done now; if not, ``retry_after`` seconds from now it may."""

    allowed: bool
    retry_after: float = 0.0

    def __bool__(self) -> bool:
        return self.allowed


def allow(name: str, key: str = "", *, rate: str, burst: int = 1, cost: int = 1) -> Answer:
    """Spend ``cost`` of the rate ``name`` of this ``key``, such as ``100/m``, if enough of it is unused.

    ``burst`` may be spent at once after a rest (GCRA). In a transaction it is spent if that commits, and
    others who ask for the same key wait for its end.

    Raises ValueError for a rate, burst or cost that makes no sense.
    """
    limit = Limit(rate=rate, burst=burst, weight=cost)
    seconds = limit.interval
    parameters = {
        "name": f"own {name}",
        "key": key,
        "seconds": cost * seconds,
        "most": burst * seconds,
    }
    with psycopg.Cursor(database.driver()) as cursor:
        found = cursor.execute(statement("allow"), parameters).fetchall()
    # No row: somebody has just spent it for the first time, and that row cannot be seen yet. And what was
    # seen may be older than what the statement has judged by.
    [(allowed, wait)] = found or [(False, seconds)]
    return Answer(allowed=allowed, retry_after=0.0 if allowed else max(wait, 0.001))
