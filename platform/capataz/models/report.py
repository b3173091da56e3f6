"""A report: what a task has found, as files that are kept in rows, so that every web process has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

from django.db import models, transaction
from django.db.models.functions import Now


class Format(models.TextChoices):
    """What a report can be read as."""

    HTML = "html", "HTML"
    MARKDOWN = "md", "Markdown"
    PDF = "pdf", "PDF"


class Reports(models.Manager["Report"]):
    """All reports."""

    def keep(self, id: uuid.UUID, title: str, files: Mapping[str, bytes]) -> None:
        """Keep the report of a task, by the task's id; one of an earlier attempt of it is replaced."""
        with transaction.atomic():
            self.filter(pk=id).delete()
            report = self.create(pk=id, title=title)
            ReportFile.objects.bulk_create(
                ReportFile(report=report, format=format, content=content) for format, content in files.items()
            )

    def prune(self, days: float) -> int:
        """Delete reports that are older than this; returns how many."""
        old = self.filter(created_at__lt=Now() - timedelta(days=days))
        return old.delete()[1].get("capataz.Report", 0)


class Report(models.Model):
    """One report. Its id is that of the task that made it."""

    id = models.UUIDField(primary_key=True)
    title = models.CharField(max_length=200)
    created_at = models.DateTimeField(db_default=Now(), db_index=True)

    objects: ClassVar[Reports] = Reports()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.title


class ReportFile(models.Model):
    """A report in one format."""

    report = models.ForeignKey(Report, on_delete=models.CASCADE, related_name="files")
    format = models.CharField(max_length=8, choices=Format.choices)
    content = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["report", "format"], name="one_file_per_report_and_format")
        ]

    def __str__(self) -> str:
        return f"{self.report_id}.{self.format}"
