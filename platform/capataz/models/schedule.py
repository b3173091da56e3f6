"""The mark that makes a schedule fire once per due time, however many beats run."""

from __future__ import annotations

from django.db import models


class ScheduleMark(models.Model):
    """The last due time of a schedule that has been submitted."""

    name = models.CharField(max_length=255, primary_key=True)
    last_due = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} at {self.last_due:%Y-%m-%d %H:%M:%S}"
