"""Throughput: what the attempts of the last minute came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection

from capataz.models.rollup import percentile
from capataz.sql import statement


@dataclass(frozen=True)
class Throughput:
    """Attempts that ended in the last minute, by outcome, and their times in seconds and as histograms."""

    succeeded: int
    failed: int
    lost: int
    run_seconds: float
    run_times: Sequence[int]
    wait_times: Sequence[int]

    @property
    def ended(self) -> int:
        """How many attempts had an outcome of their own."""
        return self.succeeded + self.failed + self.lost

    @property
    def success_rate(self) -> float | None:
        """The share of attempts that succeeded, 0 to 1; None without attempts."""
        return self.succeeded / self.ended if self.ended else None

    @property
    def mean_seconds(self) -> float | None:
        """The mean run time of an attempt; None without attempts."""
        return self.run_seconds / self.ended if self.ended else None

    def run_percentile(self, share: float) -> float | None:
        """The run time in seconds that ``share`` of the attempts stayed within."""
        return percentile(self.run_times, share)

    def wait_percentile(self, share: float) -> float | None:
        """The wait in seconds, from due to started, that ``share`` of the attempts stayed within."""
        return percentile(self.wait_times, share)


def throughput() -> Throughput:
    """The last minute. The price does not grow with the history."""
    with connection.cursor() as cursor:
        cursor.execute(statement("throughput"))
        return Throughput(*cursor.fetchone())
