"""Cleanup: delete the history of finished tasks that nobody needs any longer."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from capataz.handlers import RunningTask, handler
from capataz.policy import fixed
from tasks.payloads import Payload

Days = Annotated[float, Field(gt=0, le=36_500)]


class Ages(Payload):
    """From what age on, in days, tasks are deleted, for each outcome."""

    succeeded: Days | None = None
    dead: Days | None = None
    cancelled: Days | None = None
    expired: Days | None = None


class Cleanup(Payload):
    """An outcome without an age here keeps the platform's own retention."""

    older_than_days: Ages = Ages()


@handler(
    "cleanup",
    payload=Cleanup,
    queue="maintenance",
    retry=fixed(60, attempts=3),
    soft_time_limit=1740,
    time_limit=1800,
)
def clean(task: RunningTask, cleanup: Cleanup) -> dict[str, int]:
    """Delete finished tasks that are old enough; returns how many, for each outcome.

    What was deleted before a failure stays deleted, so that the next attempt goes on from there.
    """
    # Imported here: the verbs need models, and handlers are registered before Django has loaded them.
    from capataz.lifecycle.retention import prune

    ages = cleanup.older_than_days
    return prune(
        succeeded=_age(ages.succeeded),
        dead=_age(ages.dead),
        cancelled=_age(ages.cancelled),
        expired=_age(ages.expired),
    )


def _age(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)
