"""An attempt: one execution of a task by one worker, and how it ended."""

from __future__ import annotations

from django.db import models


class Outcome(models.TextChoices):
    """How an attempt ended."""

    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    LOST = "lost", "Lost"  # its process, worker or host died
    GIVEN_BACK = "given_back", "Given back"  # its worker was asked to stop
    CANCELLED = "cancelled", "Cancelled"
    SNOOZED = "snoozed", "Snoozed"  # its handler has put the task off


class Attempt(models.Model):
    """One row per execution, written when its outcome is known. The table is partitioned by day."""

    id = models.BigAutoField(primary_key=True)
    task_id = models.UUIDField()
    run = models.BigIntegerField()
    worker_id = models.BigIntegerField()
    outcome = models.CharField(max_length=16, choices=Outcome.choices)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField()
    error = models.TextField(null=True)
    traceback = models.TextField(null=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.outcome} in run {self.run}"
