"""A workflow: tasks that belong together, and what each of them waits for."""

from __future__ import annotations

import uuid

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from capataz.models.task import new_task_id


class OnFailure(models.TextChoices):
    """What becomes of a task when one that it waits for has not succeeded."""

    CANCEL = "cancel", "It is cancelled, and comes back if that one is retried"
    RUN = "run", "It runs all the same, and is told"
    IGNORE = "ignore", "It runs as if it had never waited for that one"


class Feeds(models.TextChoices):
    """What a task's payload is given of the result of one that it waited for."""

    NOTHING = "", "Nothing: it asks for results by their names"
    ONE = "one", "The result"
    LIST = "list", "The result, as one of a list"


class Workflow(models.Model):
    """Tasks that belong together. Its counts are those of its tasks' ends, a moment later."""

    id = models.UUIDField(primary_key=True, default=new_task_id, editable=False)
    name = models.CharField(max_length=200, blank=True, default="")
    total = models.IntegerField(db_default=0)
    succeeded = models.IntegerField(db_default=0)
    dead = models.IntegerField(db_default=0)
    cancelled = models.IntegerField(db_default=0)
    expired = models.IntegerField(db_default=0)
    callbacks = models.JSONField(db_default={}, help_text="The tasks that follow, by what they follow on.")
    called = ArrayField(models.CharField(max_length=20), db_default=[])
    submitted_by = models.CharField(max_length=100, null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    closed_at = models.DateTimeField(null=True, blank=True, help_text="Nobody adds to it from then on.")
    cancelled_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True, help_text="All its tasks have ended.")

    class Meta:
        indexes = [
            models.Index("id", name="capataz_workflow_unfinished", condition=Q(finished_at__isnull=True)),
        ]

    def __str__(self) -> str:
        return self.name or str(self.pk)

    @property
    def ended(self) -> int:
        """How many of its tasks have ended, in whatever way."""
        return self.succeeded + self.dead + self.cancelled + self.expired

    @property
    def state(self) -> str:
        """open (tasks may be added), running, succeeded, failed or cancelled."""
        if self.finished_at is None:
            return "running" if self.closed_at else "open"
        if self.succeeded == self.total:
            return "succeeded"
        return "failed" if self.dead or self.expired else "cancelled"


class Dependency(models.Model):
    """One task, the child, waits for the end of another, the parent. ``settling`` says what came of it."""

    parent_id = models.UUIDField()
    child_id = models.UUIDField()
    name = models.CharField(max_length=200, help_text="Under which the child finds the parent's result.")
    position = models.IntegerField(default=0)
    feeds = models.CharField(max_length=4, choices=Feeds.choices, blank=True, default=Feeds.NOTHING)
    on_failure = models.CharField(max_length=8, choices=OnFailure.choices, default=OnFailure.CANCEL)
    outcome = models.CharField(
        max_length=16, null=True, blank=True, help_text="The final state of the parent; empty until then."
    )
    cancelled_at = models.DateTimeField(
        null=True, blank=True, help_text="When the child was cancelled for this: its own finished_at."
    )

    class Meta:
        indexes = [
            models.Index("parent_id", name="capataz_dependency_parent"),
            models.Index("child_id", name="capataz_dependency_open", condition=Q(outcome__isnull=True)),
            models.Index(
                "child_id",
                name="capataz_dependency_failed",
                condition=Q(on_failure="cancel") & Q(outcome__isnull=False) & ~Q(outcome="succeeded"),
            ),
        ]
        constraints = [
            models.UniqueConstraint("child_id", "parent_id", name="waits_for_each_parent_once"),
            models.CheckConstraint(name="waits_for_another", condition=~Q(child_id=F("parent_id"))),
        ]

    def __str__(self) -> str:
        return f"{self.child_id} after {self.parent_id}"


def task_id_for(parent: uuid.UUID, name: str) -> uuid.UUID:
    """The id of the task that a running one adds under this name: the same at each attempt."""
    return uuid.uuid5(parent, name)
