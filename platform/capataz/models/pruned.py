"""A pruned task: what is still known of one that retention has deleted, by the id that its client gave it."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models.functions import Now


class PrunedQuerySet(models.QuerySet["Pruned"]):
    """Questions about pruned tasks."""

    def called(self, name: str) -> PrunedQuerySet:
        """The one of this id: its UUID, or the id that the client gave it."""
        try:
            return self.filter(task_id=uuid.UUID(name))
        except ValueError:
            return self.filter(key=name)


class Pruned(models.Model):
    """One row for each deleted task with a client's id. Of others, their attempts and events tell."""

    key = models.CharField(max_length=255, primary_key=True)
    task_id = models.UUIDField(db_index=True)
    type = models.CharField(max_length=64)
    state = models.CharField(max_length=16)
    finished_at = models.DateTimeField()
    pruned_at = models.DateTimeField(db_default=Now(), db_index=True)

    objects = PrunedQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.type} {self.key}"
