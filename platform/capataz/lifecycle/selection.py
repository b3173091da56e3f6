"""Selection: which tasks somebody means, as JSON that can be kept, shown and asked again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from capataz.handlers import QUEUE_NAME, TYPE_NAME
from capataz.models import Task
from capataz.models.task import TaskQuerySet
from capataz.states import states_of

MOST_IDS = 10_000


def _known_status(status: str) -> str:
    states_of(status)
    return status


def _has_zone(when: datetime) -> datetime:
    if when.utcoffset() is None:
        raise ValueError("must carry a time zone, such as Z")
    return when


Status = Annotated[str, AfterValidator(_known_status)]
Moment = Annotated[datetime, AfterValidator(_has_zone)]


class Selection(BaseModel):
    """Tasks that have all of this in common. Nothing given means every task."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    status: Annotated[list[Status], Field(max_length=20)] = []
    type: Annotated[str | None, Field(pattern=f"^{TYPE_NAME.pattern}$")] = None
    queue: Annotated[str | None, Field(pattern=f"^{QUEUE_NAME.pattern}$")] = None
    cause: Annotated[str | None, Field(max_length=160)] = None
    ids: Annotated[list[UUID] | None, Field(max_length=MOST_IDS)] = None
    error: Annotated[str | None, Field(max_length=200, description="A part of its error.")] = None
    ended_after: Moment | None = None
    ended_before: Moment | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None

    def tasks(self) -> TaskQuerySet:
        """These tasks."""
        conditions = {
            "type": self.type,
            "queue": self.queue,
            "cause": self.cause,
            "pk__in": self.ids,
            "error__icontains": self.error,
            "finished_at__gte": self.ended_after,
            "finished_at__lt": self.ended_before,
            "created_at__gte": self.created_after,
            "created_at__lt": self.created_before,
        }
        chosen = Task.objects.filter(
            **{name: value for name, value in conditions.items() if value is not None}
        )
        return chosen.with_status(*self.status) if self.status else chosen
