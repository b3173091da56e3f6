"""The states of a task, and the only moves between them.

Every UPDATE that moves a task names the states it may come from, so that of two racing processes
exactly one wins and the other is told.
"""

from django.db.models import TextChoices


class State(TextChoices):
    """Where a task stands."""

    SCHEDULED = "scheduled", "Scheduled"  # its time has not come
    BLOCKED = "blocked", "Blocked"  # waits for other tasks
    QUEUED = "queued", "Queued"  # waits for a worker
    CLAIMED = "claimed", "Claimed"  # held by a worker, not started
    RUNNING = "running", "Running"
    RETRYING = "retrying", "Retrying"  # failed or lost, waits for its next attempt
    SUCCEEDED = "succeeded", "Succeeded"
    DEAD = "dead", "Dead"  # a dead letter: waits for a person
    CANCELLED = "cancelled", "Cancelled"
    EXPIRED = "expired", "Expired"  # not started before its deadline


HELD = frozenset({State.CLAIMED, State.RUNNING})
FINAL = frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED})
UNFINISHED = frozenset(State) - FINAL

COMES_FROM: dict[State, frozenset[State]] = {
    # Snoozed, replaced by a later one, or let go by its parents before its time.
    State.SCHEDULED: HELD | {State.QUEUED, State.BLOCKED},
    State.BLOCKED: frozenset({State.DEAD, State.CANCELLED, State.EXPIRED}),
    State.QUEUED: frozenset(
        {State.SCHEDULED, State.BLOCKED, State.RETRYING, State.CLAIMED, State.RUNNING, State.DEAD}
        | {State.CANCELLED, State.EXPIRED}
    ),
    State.CLAIMED: frozenset({State.QUEUED}),
    State.RUNNING: frozenset({State.CLAIMED}),
    State.RETRYING: HELD,
    State.SUCCEEDED: HELD,
    State.DEAD: HELD,
    State.CANCELLED: UNFINISHED | {State.DEAD},
    State.EXPIRED: frozenset({State.SCHEDULED, State.BLOCKED, State.QUEUED, State.RETRYING}),
}
"""The states from which each state may be reached. A new task starts scheduled, blocked or queued."""

WIRE: dict[State, str] = {
    State.SCHEDULED: "pending",
    State.BLOCKED: "pending",
    State.QUEUED: "pending",
    State.CLAIMED: "pending",
    State.RETRYING: "pending",
    State.RUNNING: "inProgress",
    State.SUCCEEDED: "completed",
    State.DEAD: "failed",
    State.CANCELLED: "cancelled",
    State.EXPIRED: "expired",
}
"""The status that clients see: several states of ours are one of theirs."""

_STATUS_ALIASES = {"in_progress": "inProgress", "active": "inProgress"}


def states_of(status: str) -> list[State]:
    """The states that a status filter stands for: a wire status, an alias, or a state's own name.

    Raises ValueError, listing what is allowed, for any other word.
    """
    status = _STATUS_ALIASES.get(status, status)
    if status in State.values:
        return [State(status)]
    states = [state for state, wire in WIRE.items() if wire == status]
    if not states:
        allowed = sorted({*WIRE.values(), *State.values, *_STATUS_ALIASES})
        raise ValueError(f"must be one of {', '.join(allowed)}")
    return states
