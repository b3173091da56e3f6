"""Overriding: an operator sets parts of a type's policy in place of what its handler declares.

All processes follow within a second or so: whoever needs the policy of a moment reads it from PostgreSQL.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capataz import handlers
from capataz.database import Connection
from capataz.errors import Fault, InvalidSubmission
from capataz.flow import FREE, Fairness, Flow, Limit
from capataz.lifecycle import notes, wakeup
from capataz.models import TypePolicy
from capataz.sql import statement

_log = logging.getLogger(__name__)


class Override(BaseModel):
    """The parts of a policy that may be overridden. A part that is None is as the handler declares."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    limits: Annotated[tuple[Limit, ...], Field(strict=False, max_length=8)] | None = None
    fairness: Fairness | None = None

    def told(self) -> dict[str, Any]:
        """The parts that are overridden, as they are kept and shown."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def flow(self, declared: Flow) -> Flow:
        """What limits a type that declares this. Raises ValidationError if the two make no sense together."""
        return Flow(
            limits=declared.limits if self.limits is None else self.limits,
            fairness=self.fairness or declared.fairness,
        )


def override(name: str, parts: Any, *, by: str = "") -> Override:
    """Set these parts of the policy of a type, all others are as declared; with none, nothing is overridden.

    Raises InvalidSubmission naming every fault, with pointers such as ``override/limits/0/rate``.
    """
    wanted = check(name, parts)
    _set(name, wanted.told(), by)
    return wanted


def take_back(name: str, *, by: str = "") -> None:
    """All parts of this type's policy are as declared again; also of one whose handler is gone."""
    _set(name, {}, by)


def check(name: str, parts: Any) -> Override:
    """What these parts are as an override of this type. Raises InvalidSubmission as ``override`` does."""
    handler = handlers.find(name)
    try:
        wanted = Override.model_validate(parts)
        wanted.flow(handler.flow)
    except ValidationError as error:
        raise InvalidSubmission(list(_faults(error))) from None
    return wanted


def _set(name: str, told: dict[str, Any], by: str) -> None:
    with transaction.atomic():
        rows = TypePolicy.objects.select_for_update(no_key=True)
        before: dict[str, Any] = next(iter(rows.filter(pk=name).values_list("override", flat=True)), {})
        if told:
            TypePolicy.objects.update_or_create(name=name, defaults={"override": told, "changed_at": Now()})
        else:
            TypePolicy.objects.filter(pk=name).delete()
        if told != before:
            notes.tell("type.overridden", subject=name, before=before, after=told, by=by)
            transaction.on_commit(wakeup.ring)


def overrides(rows: QuerySet[TypePolicy] | None = None) -> dict[str, Override]:
    """What is overridden now, by type: in all rows, or in these."""
    found = TypePolicy.objects.all() if rows is None else rows
    return _readable(found.values_list("name", "override"))


def flows(connection: Connection) -> dict[str, Flow]:
    """What limits each type now; types that nothing limits are left out."""
    found = {handler.name: handler.flow for handler in handlers.registered()}
    for name, each in _readable(connection.execute(statement("overrides")).fetchall()).items():
        found[name] = effective(name, each)
    return {name: flow for name, flow in found.items() if flow.path is not None}


def effective(name: str, override: Override | None) -> Flow:
    """What limits a type, with this override."""
    declared = handlers.find(name).flow if handlers.is_registered(name) else FREE
    try:
        return declared if override is None else override.flow(declared)
    except ValidationError:  # it was set beside another declaration
        _log.error("the override of %s does not fit what its handler declares by now: left out", name)
        return declared


def _readable(rows: Any) -> dict[str, Override]:
    """The overrides of these rows; a part that only a newer version knows leaves that type as declared."""
    found: dict[str, Override] = {}
    for name, parts in rows:
        try:
            found[name] = Override.model_validate(parts)
        except ValidationError as error:
            _log.error("the override of %s cannot be read, and is left out: %s", name, error)
    return found


def _faults(error: ValidationError) -> Any:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        pointer = "/".join(["override", *(str(part) for part in fault["loc"])])
        yield Fault(pointer, fault["type"], fault["msg"].removeprefix("Value error, "))
