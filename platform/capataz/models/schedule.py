"""What Capataz adds to a schedule of django-celery-beat: what has fired, and what to do about the rest."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models


class Missed(models.TextChoices):
    """What becomes of due times at which no beat ran."""

    SKIP = "skip", "Leave them out"
    ONCE = "once", "Run once for all of them"
    ALL = "all", "Run for each, up to the limit"


class Overlap(models.TextChoices):
    """What becomes of a due time while an earlier task of the same schedule has not ended."""

    ALLOW = "allow", "Submit another one"
    SKIP = "skip", "Leave it out"
    QUEUE = "queue", "Submit one that waits, and no more"


class Schedule(models.Model):
    """The mark that makes a schedule fire once per due time, however many beats run, and its policy."""

    periodic_task = models.OneToOneField(
        "django_celery_beat.PeriodicTask", models.CASCADE, primary_key=True, related_name="capataz"
    )
    missed = models.CharField(
        "after a downtime",
        max_length=8,
        choices=Missed.choices,
        default=Missed.ONCE,
        db_default=Missed.ONCE,
        help_text="What to do about due times at which no beat ran.",
    )
    missed_limit = models.PositiveSmallIntegerField(
        default=100,
        db_default=100,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Of missed due times, at most the latest so many are run for.",
    )
    overlap = models.CharField(
        max_length=8,
        choices=Overlap.choices,
        default=Overlap.ALLOW,
        db_default=Overlap.ALLOW,
        help_text="What to do when the task of an earlier due time has not ended yet.",
    )
    last_due = models.DateTimeField(null=True, editable=False, help_text="The last due time that is settled.")
    rule = models.TextField(
        default="", db_default="", editable=False, help_text="The rule that the mark belongs to."
    )

    def __str__(self) -> str:
        return str(self.periodic_task)
