"""Noting events in the transaction that makes them true, from the doors' side."""

from __future__ import annotations

from typing import Any

from django.db.models.functions import Now

from capataz.models import Event, Task


def tell(kind: str, *, task: Task | None = None, subject: str = "", **detail: Any) -> None:
    """Add an event; call it inside the transaction of the change that it tells of."""
    if task is not None:
        subject = task.key or str(task.pk)
        detail = {"type": task.type, **detail}
    Event.objects.create(
        at=Now(),
        kind=kind,
        task_id=task.pk if task else None,
        subject=subject,
        detail={key: value for key, value in detail.items() if value not in ("", None)},
    )
