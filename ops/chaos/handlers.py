"""Work that leaves a record of its own, and every way to misbehave. Named by CAPATAZ_HANDLERS in a chaos run.

The record is the independent witness: what really ran, whatever the platform says.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from capataz.handlers import RunningTask, handler
from capataz.lifecycle.submission import submit
from capataz.policy import fixed
from ops.chaos.misbehaviours import HARD, SOFT, Misbehaviour
from ops.chaos.misbehaviours import misbehave as _misbehave
from ops.chaos.witness import write

RETRY = fixed(0.5, attempts=100)


class Payload(BaseModel):
    """No name that is not known."""

    model_config = ConfigDict(extra="forbid")


class Work(Payload):
    """How long to work, how many attempts shall fail first, and whether to submit a task that follows."""

    seconds: Annotated[float, Field(ge=0, le=300)] = 0
    fails: Annotated[int, Field(ge=0, le=1000)] = 0
    follow: str | None = None


class Misbehave(Payload):
    """What to do at the first start. Every other start is good."""

    how: Misbehaviour


@handler("chaos.work", payload=Work, retry=RETRY, time_limit=600)
def work(task: RunningTask, payload: Work) -> dict[str, int]:
    """Work for a while; fail at the first ``fails`` attempts."""
    write("start", task)
    time.sleep(payload.seconds)
    if task.attempt <= payload.fails:
        write("failed", task)
        raise RuntimeError(f"attempt {task.attempt} of {payload.fails} that are asked to fail")
    if payload.follow:
        submit("chaos.work", {}, key=payload.follow)
    write("end", task)
    return {"starts": task.starts}


@handler("chaos.misbehave", payload=Misbehave, retry=RETRY, soft_time_limit=SOFT, time_limit=HARD)
def misbehave(task: RunningTask, payload: Misbehave) -> Any:
    """Misbehave once, then succeed."""
    write("start", task)
    result = None
    if task.starts == 1:
        write("failed", task)  # some of it ends this process, and then nobody could write
        result = _misbehave(payload.how)
    write("end", task)
    return result
