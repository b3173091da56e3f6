"""How long tasks of each type ran lately: what the size of a bundle is computed from."""

from __future__ import annotations

from collections import deque

SAMPLES = 200


class Timings:
    """The latest run times of each type in this worker."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    def add(self, task_type: str, seconds: float) -> None:
        """Remember one run."""
        self._seconds.setdefault(task_type, deque(maxlen=SAMPLES)).append(seconds)

    def summary(self) -> dict[str, list[float]]:
        """Per type: [samples, mean seconds, 95th percentile seconds]."""
        return {name: _summary(sorted(seconds)) for name, seconds in list(self._seconds.items())}


def _summary(ordered: list[float]) -> list[float]:
    count = len(ordered)
    p95 = ordered[min(count - 1, int(count * 0.95))]
    return [count, round(sum(ordered) / count, 6), round(p95, 6)]
