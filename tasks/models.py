"""What is kept of other services, and of the files under the roots: the front matter index."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Now


class Overtaken(Exception):
    """A later run looks at this source, so this one may no longer write."""


class ExternalSources(models.Manager["ExternalSource"]):
    """All sources."""

    def begin(self, name: str, start: str) -> ExternalSource | None:
        """Take the right to look at a source, from whoever has it; None if it is to be left alone for now.

        A source that is new begins at the cursor ``start``.
        """
        with transaction.atomic():
            self.get_or_create(name=name, defaults={"cursor": start})
            free = Q(not_before=None) | Q(not_before__lte=Now())
            source = self.select_for_update().filter(free, name=name).first()
            if source is not None:
                source.run += 1
                self.filter(pk=source.pk).update(run=source.run, looked_at=Now())
        return source


class ExternalSource(models.Model):
    """A place outside, such as ``github:owner/name`` or ``slack:C0123``, and how far it was read.

    Everything up to ``cursor`` is stored. A service that answers with the newest first is walked back from
    ``walk_top`` to the cursor; what is left of that walk is older than ``walk_bottom``.
    """

    name = models.CharField(max_length=160, unique=True)
    run = models.BigIntegerField(
        default=0, help_text="The number of the last look. It fences those before it."
    )
    cursor = models.CharField(max_length=40)
    etag = models.TextField(default="", help_text="What the answer for this cursor was marked with.")
    walk_top = models.CharField(max_length=40, default="")
    walk_bottom = models.CharField(max_length=40, default="")
    not_before = models.DateTimeField(null=True, help_text="The service asked to be left alone until then.")
    looked_at = models.DateTimeField(null=True)
    error = models.TextField(default="", help_text="Why the last look failed; empty if it did not.")

    objects: ClassVar[ExternalSources] = ExternalSources()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def move(self, **changes: Any) -> None:
        """Change this row. Raises Overtaken if a later run has begun to look."""
        if not ExternalSource.objects.filter(pk=self.pk, run=self.run).update(**changes):
            raise Overtaken(self.name)
        for name, value in changes.items():
            setattr(self, name, value)

    def store(self, items: Iterable[ExternalItem], **changes: Any) -> None:
        """Keep what was found and move on, in one transaction. Raises Overtaken as ``move`` does."""
        # One statement cannot write a row twice.
        by_id = {item.external_id: item for item in items}
        with transaction.atomic():
            self.move(**changes)
            ExternalItem.objects.bulk_create(
                by_id.values(),
                update_conflicts=True,
                unique_fields=["source", "external_id"],
                update_fields=["changed_at", "document"],
            )


class ExternalItem(models.Model):
    """One thing that a source has, as it was when it was last read: an issue, a pull request, a message."""

    source = models.ForeignKey(ExternalSource, on_delete=models.CASCADE, related_name="items")
    external_id = models.CharField(max_length=40, help_text="Its number or time, unique within its source.")
    changed_at = models.DateTimeField()
    document = models.JSONField(help_text="What the service says of it.")

    class Meta:
        ordering = ["-changed_at", "-id"]
        indexes = [models.Index(fields=["changed_at"], name="external_item_changed")]
        constraints = [
            models.UniqueConstraint(fields=["source", "external_id"], name="one_row_per_external_item")
        ]

    def __str__(self) -> str:
        return f"{self.source} {self.external_id}"


class IndexedFile(models.Model):
    """A Markdown file, as it was when ``frontmatter_index`` read it last."""

    root = models.CharField(max_length=20, help_text="The root under which it lies, such as data.")
    path = models.CharField(max_length=1024, unique=True, help_text="As clients know it: /data/notes/a.md.")
    digest = models.CharField(max_length=64, help_text="SHA-256 of its contents.")
    size = models.BigIntegerField(help_text="Bytes.")
    modified = models.DateTimeField()
    stamp = models.CharField(
        max_length=120, help_text="Of the kernel; empty if it was too young to tell a later change by it."
    )
    title = models.CharField(max_length=500)
    date = models.DateField(null=True)
    tags = ArrayField(models.CharField(max_length=200))
    front_matter = models.JSONField()
    indexed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["path"]
        indexes = [GinIndex(fields=["tags"], name="indexed_file_tags")]

    def __str__(self) -> str:
        return self.path


def prune(days: float, *, batch: int = 1000) -> int:
    """Delete items that changed last longer ago than this; returns how many."""
    old = ExternalItem.objects.filter(changed_at__lt=Now() - timedelta(days=days)).order_by("changed_at")
    total = 0
    while ids := list(old.values_list("pk", flat=True)[:batch]):
        total += ExternalItem.objects.filter(pk__in=ids).delete()[0]
    return total
