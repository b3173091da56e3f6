"""The load of a queue: how much waits in it, for how long, and how much of it runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from capataz.models.counting import CAP
from capataz.priority import HIGHEST, LOWEST
from capataz.sql import statement


@dataclass(frozen=True)
class QueueLoad:
    """One queue as it is now. ``waiting`` could be started, ``later`` is scheduled or retrying, and each
    stops at ``counting.CAP``; ``oldest_age`` is seconds."""

    name: str
    paused_at: datetime | None
    pause_reason: str
    waiting_limit: int | None
    waiting: int
    later: int
    claimed: int
    running: int
    oldest_age: float | None

    @property
    def is_paused(self) -> bool:
        """Whether its tasks wait until somebody resumes it."""
        return self.paused_at is not None

    @property
    def waiting_is_exact(self) -> bool:
        """Whether no more wait than ``waiting`` says."""
        return self.waiting < CAP

    @property
    def shown_waiting(self) -> str:
        """``waiting`` for people, with a + if there are more."""
        return _shown(self.waiting)

    @property
    def shown_later(self) -> str:
        """``later`` for people."""
        return _shown(self.later)


def _shown(count: int) -> str:
    return f"{count}{'' if count < CAP else '+'}"


def queue_loads() -> list[QueueLoad]:
    """Every queue, by name. The price does not grow with the backlog or the history."""
    with connection.cursor() as cursor:
        cursor.execute(statement("queue_load"), {"cap": CAP, "lowest": LOWEST, "highest": HIGHEST})
        return [QueueLoad(*row) for row in cursor.fetchall()]
