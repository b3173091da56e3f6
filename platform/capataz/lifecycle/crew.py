"""The crew: what the live workers can take together, and how fast they have been."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from capataz.database import Connection
from capataz.sql import statement

# Before this many runs of a type, nobody knows how long it takes.
ENOUGH_SAMPLES = 20


@dataclass
class Crew:
    """Slots per queue, types per queue, run times per type, and the types whose tasks go one by one."""

    slots: dict[str, int] = field(default_factory=dict)
    types: dict[str, set[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    single: set[str] = field(default_factory=set)

    def all_types(self) -> list[str]:
        """Every type that some live worker knows."""
        return sorted(set().union(*self.types.values())) if self.types else []

    def bundle_size(self, task_type: str) -> int:
        """How many tasks of this type one message may announce: about ``BUNDLE_SECONDS`` of work.

        By the mean or the 95th percentile, whichever is longer: where nine in ten take 1 ms and one
        takes 1 s, a median would promise too much.
        """
        if task_type in self.single or self.samples.get(task_type, 0) < ENOUGH_SAMPLES:
            return 1
        seconds = max(self.seconds[task_type], settings.BUNDLE_SECONDS / settings.BUNDLE_TASKS)
        return max(1, min(settings.BUNDLE_TASKS, int(settings.BUNDLE_SECONDS / seconds)))


def present(connection: Connection) -> Crew:
    """The crew as of now."""
    return assemble(connection.execute(statement("live_workers")))


def assemble(workers: Iterable[tuple[Any, ...]]) -> Crew:
    """The crew of these workers: rows of (queues, types, max_concurrency, timings)."""
    crew = Crew()
    for queues, types, slots, timings in workers:
        for queue in queues:
            crew.slots[queue] = crew.slots.get(queue, 0) + slots
            crew.types.setdefault(queue, set()).update(types)
        for task_type, (samples, mean, p95) in timings.items():
            crew.samples[task_type] = crew.samples.get(task_type, 0) + int(samples)
            crew.seconds[task_type] = max(crew.seconds.get(task_type, 0.0), mean, p95)
    return crew
