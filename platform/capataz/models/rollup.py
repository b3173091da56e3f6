"""A roll-up: what the attempts of a stretch of time came to, so that no chart has to read their rows."""

from __future__ import annotations

from collections.abc import Sequence

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

# The upper bounds of a histogram's buckets, in seconds: 1 ms, and on by factors of the square root of two
# up to 2.3 hours; one more bucket holds what took longer. ``capataz_bounds()`` is the same in PostgreSQL.
BOUNDS = tuple(0.001 * 2 ** (step / 2) for step in range(47))
BUCKETS = len(BOUNDS) + 1


class Rollup(models.Model):
    """What the attempts that ended in ``seconds`` seconds from ``at`` on came to, for one queue and type.

    With 0 seconds it is what one commit of one worker wrote; those are folded into longer ones. A histogram
    has a number of attempts for each bucket. ``wait`` is from the task's due time to the attempt's start.
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField()
    seconds = models.IntegerField()
    queue = models.CharField(max_length=64)
    type = models.CharField(max_length=64)
    succeeded = models.IntegerField(db_default=0)
    failed = models.IntegerField(db_default=0)
    lost = models.IntegerField(db_default=0)
    given_back = models.IntegerField(db_default=0)
    cancelled = models.IntegerField(db_default=0)
    dead = models.IntegerField(db_default=0, help_text="Tasks that became dead letters.")
    run_seconds = models.FloatField(help_text="The sum of the run times.")
    wait_seconds = models.FloatField(help_text="The sum of the waits.")
    run_times = ArrayField(models.IntegerField(), help_text="The histogram of the run times.")
    wait_times = ArrayField(models.IntegerField(), help_text="The histogram of the waits.")

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index("seconds", "at", name="capataz_rollup_span")]
        constraints = [
            models.UniqueConstraint(
                "at", "seconds", "queue", "type", name="one_per_stretch", condition=Q(seconds__gt=0)
            )
        ]

    def __str__(self) -> str:
        return f"{self.queue} {self.type} from {self.at:%Y-%m-%d %H:%M:%S}, {self.seconds} s"


def percentile(histogram: Sequence[int], share: float) -> float | None:
    """The time in seconds that ``share`` (0 to 1) of the attempts stayed within; None without attempts.

    It is the upper bound of a bucket, so at most 41 % too high; of the last bucket, the lower one.
    """
    left = sum(histogram) * share
    if not left:
        return None
    for bound, times in zip(BOUNDS, histogram, strict=False):
        left -= times
        if left <= 0:
            return bound
    return BOUNDS[-1]
