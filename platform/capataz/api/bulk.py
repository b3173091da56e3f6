"""Many tasks at once: dead letters by what they died of, and one action for a whole selection."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Router
from ninja.responses import codes_4xx

from capataz import handlers
from capataz.api.auth import Allows
from capataz.api.schemas import BulkActionIn, BulkActionOut, DeadLetterGroupOut, ProblemOut
from capataz.api.tasks import CallerRequest, may_submit
from capataz.api.wire import answer, moment
from capataz.lifecycle import bulk, notes
from capataz.lifecycle.submission import submit
from capataz.models import Role
from capataz.models.counting import count
from capataz.models.dead_letters import DeadLetterGroup, dead_letter_groups

router = Router(tags=["many tasks"])

EXAMPLES = 10


@router.get(
    "/dead-letters",
    auth=Allows(Role.VIEWER),
    response={200: list[DeadLetterGroupOut], codes_4xx: ProblemOut},
)
def list_dead_letters(request: HttpRequest) -> HttpResponse:
    """The dead tasks, grouped by type and cause, the largest groups first."""
    return answer([_document(group) for group in dead_letter_groups()])


@router.post(
    "/bulk",
    auth=Allows(Role.OPERATOR),
    response={200: BulkActionOut, 202: BulkActionOut, codes_4xx: ProblemOut},
)
def act(request: CallerRequest, wanted: BulkActionIn) -> HttpResponse:
    """Retry, replay, cancel or discard all tasks of a selection. A task of its own does it: look at it, or
    cancel it, as at any other. With `preview` nothing is done."""
    action = bulk.Action(wanted.action)
    chosen = bulk.meant(action, wanted.filter)
    matches = count(chosen)
    document: dict[str, Any] = {
        "action": action.value,
        "matches": matches.value,
        "matchesIsExact": matches.exact,
        "examples": [str(pk) for pk in chosen.order_by("pk").values_list("pk", flat=True)[:EXAMPLES]],
        "task": None,
    }
    if wanted.preview:
        return answer(document)
    if action is bulk.Action.REPLAY:
        too_high = [
            each.name for each in handlers.registered() if not request.auth.role.includes(Role(each.role))
        ]
        for task in chosen.filter(type__in=too_high)[:1]:
            may_submit(request.auth, task.type)
    asked = wanted.filter.model_dump(mode="json", by_alias=True, exclude_unset=True)
    by = request.auth.name
    with transaction.atomic():
        task = submit(
            "bulk_action",
            {"action": action.value, "filter": asked, "per_second": wanted.per_second, "by": by},
            submitted_by=by,
        )
        notes.tell("task.bulkAction", task=task, action=action.value, filter=asked, by=by)
    headers = {"Location": f"{request.path.removesuffix('/bulk')}/tasks/{task.pk}"}
    return answer({**document, "task": str(task.pk)}, 202, headers)


def _document(group: DeadLetterGroup) -> dict[str, Any]:
    return {
        "type": group.type,
        "cause": group.cause,
        "count": group.count,
        "firstAt": moment(group.first_at),
        "lastAt": moment(group.last_at),
        "examples": [str(each) for each in group.examples],
        "error": group.error,
    }
