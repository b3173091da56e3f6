"""A queue: where tasks wait. It can be paused, and limited."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

# Whoever submits to a limited queue counts what waits in it, up to the limit.
HIGHEST_LIMIT = 1_000_000


class Queue(models.Model):
    """One queue. A paused queue accepts tasks and starts none; a full one accepts none."""

    name = models.CharField(max_length=64, primary_key=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    pause_reason = models.CharField(max_length=200, blank=True, default="")
    waiting_limit = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(HIGHEST_LIMIT)],
        help_text="So many tasks may wait; more are refused. Empty: no limit.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_paused(self) -> bool:
        """Whether its tasks wait until somebody resumes it."""
        return self.paused_at is not None
