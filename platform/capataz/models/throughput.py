"""Throughput: what the attempts of the last minute came to."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connection

from capataz.sql import statement

MOST = 100_000  # attempts looked at


@dataclass(frozen=True)
class Throughput:
    """Attempts that ended in the last minute, by outcome, and the mean run time of those that succeeded."""

    succeeded: int
    failed: int
    lost: int
    mean_seconds: float | None

    @property
    def success_rate(self) -> float | None:
        """The share of attempts that succeeded, 0 to 1; None without attempts."""
        ended = self.succeeded + self.failed + self.lost
        return self.succeeded / ended if ended else None


def throughput() -> Throughput:
    """The last minute."""
    with connection.cursor() as cursor:
        cursor.execute(statement("throughput"), {"most": MOST})
        return Throughput(*cursor.fetchone())
