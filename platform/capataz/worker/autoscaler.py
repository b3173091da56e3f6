"""The autoscaler: as many children as there is work for, within the bounds of ``--autoscale``.

Up at once. Down one at a time, and only to what the busiest moment of the last while needed: under a
trickle of tasks the stock one never shrinks, and after a burst it shrinks all at once.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from celery.worker import state
from celery.worker.autoscale import Autoscaler as StockAutoscaler

LOOK = 2.0  # seconds between two looks
MEMORY = 20.0  # seconds for which a busy moment keeps its children


class Autoscaler(StockAutoscaler):
    """Sizes the pool by bundles in flight and plain tasks reserved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keepalive = LOOK
        self._needs: deque[tuple[float, int]] = deque()

    @property
    def qty(self) -> int:
        """How many children could be busy now."""
        station = self.worker.station
        plain = sum(1 for request in list(state.reserved_requests) if not hasattr(request, "held"))
        return len(station.bundles) + plain

    def _maybe_scale(self, req: Any = None) -> bool | None:
        if self.pool._pool is None:  # the worker stops
            return None
        now, need = time.monotonic(), self.qty
        self._needs.append((now, need))
        while self._needs[0][0] < now - MEMORY:
            self._needs.popleft()
        target = max(self.min_concurrency, min(need, self.max_concurrency))
        if target > self.processes:
            self._grow(target - self.processes)
            return True
        peak = max(need for _, need in self._needs)
        if self.processes > max(self.min_concurrency, peak) and req is None and self._looked(now):
            self._shrink(1)
            return True
        return None

    _last_look = 0.0

    def _looked(self, now: float) -> bool:
        """Whether a whole look has passed since the last shrinking."""
        if now - self._last_look < LOOK * 0.9:
            return False
        self._last_look = now
        return True
