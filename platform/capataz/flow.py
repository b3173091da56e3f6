"""What may run of a type at a time and how often, and how its keys share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from capataz.errors import ConfigurationError

MOST = 1_000_000
RATE = re.compile(r"([1-9][0-9]{0,6})/([smhd])")
PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PLACE = re.compile(r"payload(\.[A-Za-z0-9_-]+)+")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _place(value: str | None) -> str | None:
    if value is not None and not (PLACE.fullmatch(value) and len(value) <= 100):
        raise ValueError("must be a place in the payload such as payload.tenant, of at most 100 characters")
    return value


class Limit(_Part):
    """At most ``concurrency`` tasks of a type at a time, or ``rate`` starts such as ``100/m``: of all its
    tasks together, or ``per`` value at a place in the payload such as ``payload.tenant``.

    Starts are spread evenly; after a rest ``burst`` of them may follow each other at once, one unless said
    otherwise. A task counts ``weight`` times against the rate: a number, or a place in the payload.
    """

    concurrency: Annotated[int, Field(ge=1, le=MOST)] | None = None
    rate: str | None = None
    burst: Annotated[int, Field(ge=1, le=MOST)] | None = None
    weight: Annotated[int, Field(ge=1, le=MOST)] | str = 1
    per: str | None = None

    @field_validator("rate")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        if value is not None and not RATE.fullmatch(value):
            raise ValueError("must be a number of starts in a second, minute, hour or day, such as 100/m")
        return value

    @field_validator("per")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        return _place(value)

    @field_validator("weight")
    @classmethod
    def _is_a_weight(cls, value: int | str) -> int | str:
        if isinstance(value, str):
            _place(value)
        return value

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if self.concurrency is None and self.rate is None:
            raise ValueError("a limit needs concurrency or rate")
        if self.rate is None and (self.burst is not None or self.weight != 1):
            raise ValueError("burst and weight belong to a rate")
        if isinstance(self.weight, int) and self.rate is not None and self.weight > self.most_at_once:
            raise ValueError("weight must be at most burst: such a task could never start")
        if isinstance(self.weight, str) and self.burst is None:
            raise ValueError("a weight from the payload needs burst, which is the most that it counts as")
        return self

    @property
    def interval(self) -> float:
        """Seconds between two starts at the rate."""
        starts, period = RATE.fullmatch(self.rate or "").groups()  # type: ignore[union-attr]
        return PERIODS[period] / int(starts)

    @property
    def most_at_once(self) -> int:
        """How many starts may follow each other at once."""
        return self.burst or 1


class Fairness(_Part):
    """The values at a place in the payload take turns, so that nobody's flood delays the others. One with
    ``weights`` has so many turns where others have one."""

    per: str
    weights: dict[str, Annotated[float, Field(ge=0.001, le=1000, strict=False)]] = {}

    @field_validator("per")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        _place(value)
        return value


class Flow(_Part):
    """The limits of a type, and how its keys share. All that is per key is so per the same key."""

    limits: Annotated[tuple[Limit, ...], Field(strict=False, max_length=8)] = ()
    fairness: Fairness | None = None

    @model_validator(mode="after")
    def _has_one_key(self) -> Flow:
        if len(self._places) > 1:
            raise ValueError(
                f"all that is per key must name one place, not {' and '.join(sorted(self._places))}"
            )
        return self

    @property
    def _places(self) -> set[str]:
        keyed = {limit.per for limit in self.limits if limit.per}
        return keyed | ({self.fairness.per} if self.fairness else set())

    @property
    def places(self) -> set[str]:
        """All places in the payload that are looked at."""
        return self._places | {limit.weight for limit in self.limits if isinstance(limit.weight, str)}

    @property
    def path(self) -> str | None:
        """Where in the payload the key of a task is, "" for types without keys; None if nothing limits it."""
        if not self.limits and self.fairness is None:
            return None
        return "".join(self._places).removeprefix("payload.")

    def weight(self, key: str) -> float:
        """How many turns this key has where others have one."""
        return self.fairness.weights.get(key, 1.0) if self.fairness else 1.0


FREE = Flow()


def declared(name: str, limits: Limit | Sequence[Limit] | None, fairness: Fairness | None) -> Flow:
    """What a handler declares. Raises ConfigurationError for what makes no sense together."""
    given = (limits,) if isinstance(limits, Limit) else tuple(limits or ())
    try:
        return Flow(limits=given, fairness=fairness)
    except ValidationError as error:
        raise ConfigurationError(f"limit of {name!r}: {error.errors()[0]['msg']}") from None


def lane(task_type: str, path: str, key: str = "") -> str:
    """The lane of the tasks of a type with this key, as ``capataz_lane`` in PostgreSQL names it."""
    return f"{task_type}|{path}|{key}"


def key_of(lane_name: str) -> str:
    """The key of a lane; of a very long one a part and its checksum."""
    return lane_name.split("|", 2)[2]
