"""What can go wrong, in words that a caller can act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded as CelerySoftTimeLimitExceeded


class CapatazError(Exception):
    """The base of every error that Capataz raises on purpose."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with what was submitted: where, what kind, and what would be right."""

    pointer: str
    code: str
    detail: str


class InvalidSubmission(CapatazError):
    """A submission that cannot be accepted; ``faults`` names everything that is wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults))


class IllegalMove(CapatazError):
    """A task cannot make this move from the state that it is in."""


class Conflict(CapatazError):
    """What was asked for contradicts what is already there; ``holder`` is the task that is, if known."""

    def __init__(self, detail: str, *, holder: UUID | None = None) -> None:
        self.holder = holder
        super().__init__(detail)


class QueueFull(CapatazError):
    """A queue with a limit has no room for what was submitted. None of it was accepted; try again later."""

    # Seconds: a guess at when there is room again.
    retry_after = 5

    def __init__(self, queue: str, *, limit: int, waiting: int, asked: int) -> None:
        self.queue, self.limit, self.waiting, self.asked = queue, limit, waiting, asked
        super().__init__(
            f"queue {queue} has no room for {asked} more: {waiting} tasks wait of {limit} that may;"
            f" try again in {self.retry_after} seconds"
        )


class CircuitOpen(CapatazError):
    """A circuit lets no call through. Where a handler does not catch it, its task waits for ``retry_after``
    seconds and spends no attempt.
    """

    def __init__(self, name: str, retry_after: float) -> None:
        self.name, self.retry_after = name, retry_after
        super().__init__(f"the circuit {name} is open; try again in {retry_after:.0f} seconds")


class Discard(CapatazError):
    """Raised by a handler: this task is not worth repeating, make it a dead letter now."""


class RetryLater(CapatazError):
    """Raised by a handler: this attempt has failed, and the next one is to wait.

    ``after`` is seconds, a timedelta, or a time with its time zone.
    """

    def __init__(self, after: Any, reason: str = "") -> None:
        self.retry_after = after
        super().__init__(reason or "to be tried again later")


class Verdict(BaseException):
    """What a handler has decided about its own attempt, by ``task.retry_in``, ``snooze`` or ``discard``.

    A BaseException, so that a handler's own ``except Exception`` does not swallow it.
    """

    def __init__(self, reason: str = "", seconds: float = 0.0) -> None:
        self.seconds = seconds
        super().__init__(reason)


class RetryIn(Verdict):
    """This attempt has failed; the next one comes after exactly these seconds."""


class Snoozed(Verdict):
    """This was no attempt: the task waits for these seconds and begins anew."""


class Discarded(Verdict):
    """The task is not worth repeating."""


class TaskError(CapatazError):
    """A task that somebody waited for did not succeed; says why. ``state`` is None if it is not there."""

    def __init__(self, task_id: str, state: str | None, error: str) -> None:
        self.task_id, self.state, self.error = task_id, state, error
        super().__init__(error)


class TaskCancelled(BaseException):
    """Raised inside a running handler whose task was cancelled.

    A BaseException, so that a handler's own ``except Exception`` does not swallow it.
    """


class SoftTimeLimitExceeded(CapatazError, CelerySoftTimeLimitExceeded):
    """Raised inside a running handler when its soft time limit has passed. It is Celery's one, too."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class ConfigurationError(CapatazError):
    """A setting or a handler's declaration that makes no sense; the message says how to mend it."""


class CannotDecrypt(CapatazError):
    """An encrypted value cannot be read: its key is missing, or it is not what was written there."""
