"""A log line: what a handler has said while it worked on a task."""

from __future__ import annotations

from django.db import models


class LogLine(models.Model):
    """One line of one attempt, which ``run`` names. The table is partitioned by day."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    task_id = models.UUIDField()
    run = models.BigIntegerField()
    level = models.SmallIntegerField(help_text="As logging has them: 20 is info.")
    logger = models.CharField(max_length=100)
    message = models.TextField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.message[:80]
