"""Pausing: a queue that accepts tasks and starts none."""

from __future__ import annotations

from django.db import transaction
from django.db.models.functions import Now

from capataz.lifecycle import notes, wakeup
from capataz.models import Queue, Task


def pause(queue: Queue, *, reason: str = "", by: str = "") -> Queue:
    """Start nothing more from this queue. What is released and unclaimed waits again from here on."""
    with transaction.atomic():
        if Queue.objects.filter(pk=queue.pk, paused_at__isnull=True).update(
            paused_at=Now(), pause_reason=reason
        ):
            _withdraw(queue)
            notes.tell("queue.paused", subject=queue.name, because=reason, by=by)
    queue.refresh_from_db()
    return queue


def resume(queue: Queue, *, by: str = "") -> Queue:
    """Start tasks of this queue again."""
    with transaction.atomic():
        if Queue.objects.filter(pk=queue.pk, paused_at__isnull=False).update(paused_at=None, pause_reason=""):
            notes.tell("queue.resumed", subject=queue.name, by=by)
            transaction.on_commit(wakeup.ring)
    queue.refresh_from_db()
    return queue


def _withdraw(queue: Queue) -> None:
    """A worker that is claiming one of them at this moment may keep it: the claim came first."""
    unclaimed = Task.objects.filter(worker_id__isnull=True, queue=queue.name, released_at__isnull=False)
    free = unclaimed.select_for_update(skip_locked=True).values_list("pk", flat=True)
    Task.objects.filter(pk__in=list(free)).update(released_at=None, verify_at=None, publishes=0)
