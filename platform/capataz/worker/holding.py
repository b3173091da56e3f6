"""What a worker holds: tasks it was granted, and the bundles they travel in."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from capataz.handlers import Handler
from capataz.lifecycle.execution import Grant


class Ending(enum.Enum):
    """How a run ended, as the worker saw it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"  # its own process died
    GIVEN_BACK = "given_back"  # the worker stops, or took it back to let others have it
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"  # its handler has put it off


@dataclass(slots=True, eq=False)
class Held:
    """One task that this worker holds under a run."""

    id: uuid.UUID
    run: int
    type: str
    handler: Handler[object]
    payload: str
    attempts: int
    max_attempts: int
    losses: int
    worker_losses: int
    soft_time_limit: float | None
    time_limit: float
    bundle: Bundle
    index: int
    snoozes: int = 0
    backoff: str | None = None
    in_workflow: bool = False  # it may have parents, and others wait for its end
    started: float | None = None  # seconds of the machine's monotonic clock, from the child
    ended: bool = False
    stop_reason: Ending | None = None  # why its process is about to be killed
    stop_text: str = ""
    kill_at: float | None = None
    told_running: bool = False  # the ledger was told to write it down as running
    shown_running: bool = False  # and has done so

    @classmethod
    def granted(cls, grant: Grant, handler: Handler[object], bundle: Bundle, index: int) -> Held:
        """What this grant gives, in this place of a bundle."""
        return cls(
            id=grant.id,
            run=grant.run,
            type=grant.type,
            handler=handler,
            payload=grant.payload,
            attempts=grant.attempts,
            max_attempts=grant.max_attempts,
            losses=grant.losses,
            worker_losses=grant.worker_losses,
            soft_time_limit=grant.soft_time_limit or handler.soft_time_limit,
            time_limit=grant.time_limit or handler.time_limit,
            bundle=bundle,
            index=index,
            snoozes=grant.snoozes,
            backoff=grant.backoff,
            in_workflow=grant.in_workflow,
        )

    @property
    def starts(self) -> int:
        """The how-manieth start the next one is, those that were lost or snoozed included."""
        return self.attempts + self.losses + self.worker_losses + self.snoozes + 1


@dataclass(slots=True, eq=False)
class Bundle:
    """Tasks of one type that one message announced and one child runs, one after the other."""

    serial: int
    type: str
    acknowledge: Callable[[], None]
    items: list[Held] = field(default_factory=list)
    pipe: int = -1
    pid: int | None = None
    current: Held | None = None
    followed_at: float = 0.0
    over: bool = False  # its child has found no more tokens
    over_at: float = 0.0
    killed: bool = False  # its child was killed on purpose
    open: int = 0  # items whose outcome is not committed yet
    job: object | None = None

    def is_incomplete(self) -> bool:
        """Whether the end of some of its tasks is not known yet."""
        return any(not held.ended for held in self.items)


@dataclass(slots=True, eq=False)
class Ended:
    """The end of a run, on its way into the ledger. ``ended`` is a time of the monotonic clock."""

    held: Held
    ending: Ending
    ended: float
    result: str | None = None
    error: str | None = None
    traceback: str | None = None
    retryable: bool = True
    delay: float | None = None  # seconds that the failure, its handler, or an open circuit asks to wait
    counted: bool = False  # a give-back that the task's row counts
    excused: bool = False  # a failure that says nothing about the circuit of its type
