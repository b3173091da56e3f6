"""A queue: where tasks wait. It can be paused."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Queue(models.Model):
    """One queue. A paused queue accepts tasks and starts none."""

    name = models.CharField(max_length=64, primary_key=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    pause_reason = models.CharField(max_length=200, blank=True, default="")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_paused(self) -> bool:
        """Whether its tasks wait until somebody resumes it."""
        return self.paused_at is not None
