"""Limiting: how many tasks may wait in a queue before it refuses more."""

from __future__ import annotations

from django.db import transaction

from capataz.errors import Fault, InvalidSubmission
from capataz.lifecycle import notes
from capataz.models import Queue
from capataz.models.queue import HIGHEST_LIMIT


def limit(queue: Queue, waiting: int | None, *, by: str = "") -> Queue:
    """Let so many tasks wait in this queue, or any number with None, from the next submission on. What was
    accepted before stays and comes back as ever, also where that is more.

    Raises InvalidSubmission for a limit that is not 1 to HIGHEST_LIMIT.
    """
    if waiting is not None and not 1 <= waiting <= HIGHEST_LIMIT:
        detail = f"must be 1 to {HIGHEST_LIMIT}, or null for no limit; pause a queue to have nothing started"
        raise InvalidSubmission([Fault("waitingLimit", "out_of_range", detail)])
    with transaction.atomic():
        before = Queue.objects.select_for_update(no_key=True).get(pk=queue.pk).waiting_limit
        if before != waiting:
            Queue.objects.filter(pk=queue.pk).update(waiting_limit=waiting)
            notes.tell(
                "queue.limited" if waiting is not None else "queue.unlimited",
                subject=queue.name,
                limit=waiting,
                before=before,
                by=by,
            )
    queue.refresh_from_db()
    return queue
