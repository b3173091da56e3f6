"""An event: a fact, added in the transaction that made it true and never changed."""

from __future__ import annotations

from django.db import models


class Event(models.Model):
    """One fact about a task, worker, queue or schedule. The table is partitioned by day.

    What every task does (start, succeed) is told by its attempts; events tell what is unusual.
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    kind = models.CharField(max_length=40)
    task_id = models.UUIDField(null=True)
    worker_id = models.BigIntegerField(null=True)
    subject = models.CharField(max_length=255, help_text="The name of what it is about.")
    detail = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"
