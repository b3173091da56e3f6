"""Bulk actions as a task: tracked, cancellable, and no faster than asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from capataz.handlers import RunningTask, handler
from capataz.policy import fixed
from tasks.payloads import Payload


class BulkAction(Payload):
    """What to do to which tasks. ``filter`` is a selection as ``POST /api/v1/bulk`` takes it."""

    action: Literal["retry", "replay", "cancel", "discard"]
    filter: dict[str, JsonValue]
    per_second: Annotated[float | None, Field(gt=0, le=100_000)] = None
    by: Annotated[str, Field(max_length=100)] = ""


@handler(
    "bulk_action",
    payload=BulkAction,
    queue="maintenance",
    role="operator",
    retry=fixed(10, attempts=5),
    time_limit=24 * 3600,
)
def act_on_many(task: RunningTask, bulk: BulkAction) -> dict[str, Any]:
    """Do the same to every task of a selection; returns how many it was done to, and who refused.

    A repeated attempt goes on where the last one ended.
    """
    # Imported here: the verbs need models, and handlers are registered before Django has loaded them.
    from capataz.lifecycle.bulk import Action, Done, act, meant
    from capataz.lifecycle.selection import Selection
    from capataz.models.counting import count

    action, selection = Action(bulk.action), Selection.model_validate(bulk.filter)
    total = max(1, count(meant(action, selection)).value)

    def report(done: Done) -> None:
        seen = done.done + done.refused
        task.progress(min(99, 100 * seen // total), f"{done.done} done, {done.refused} refused")

    done = act(
        action, selection, name=f"bulk {task.id}", by=bulk.by, per_second=bulk.per_second, report=report
    )
    return {"done": done.done, "refused": done.refused, "refusals": done.refusals}
