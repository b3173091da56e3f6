"""A worker: one process incarnation that executes tasks."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now


class WorkerState(models.TextChoices):
    """Where a worker stands."""

    RUNNING = "running", "Running"
    DRAINING = "draining", "Draining"  # finishes what it runs, claims nothing
    STOPPED = "stopped", "Stopped"
    LOST = "lost", "Lost"


ALIVE = [WorkerState.RUNNING, WorkerState.DRAINING]


class WorkerQuerySet(models.QuerySet["Worker"]):
    """Questions about workers."""

    def alive(self) -> WorkerQuerySet:
        """Workers that have neither stopped nor been given up for dead."""
        return self.filter(state__in=ALIVE)


class Worker(models.Model):
    """One incarnation of a worker's parent process. Its id is part of every run that it grants."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=255)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    state = models.CharField(max_length=16, choices=WorkerState.choices, default=WorkerState.RUNNING)
    queues = ArrayField(models.CharField(max_length=64), default=list)
    types = ArrayField(models.CharField(max_length=64), default=list)
    max_concurrency = models.IntegerField(default=0)
    processes = models.IntegerField(default=0)
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now())
    stopped_at = models.DateTimeField(null=True, blank=True)
    backends = models.JSONField(default=list, help_text="Its PostgreSQL sessions: [pid, backend_start].")
    claimed = models.IntegerField(default=0)
    running = models.IntegerField(default=0)
    cpu_percent = models.FloatField(default=0)
    ram_mb = models.FloatField(default=0)
    loop_lag = models.FloatField(default=0, help_text="Seconds since its event loop last turned.")
    phase = models.CharField(max_length=16, default="connecting")
    timings = models.JSONField(default=dict, help_text="Per type: [samples, mean seconds, p95 seconds].")

    objects = WorkerQuerySet.as_manager()

    class Meta:
        ordering = ["name", "-id"]
        indexes = [
            models.Index(
                "state", name="capataz_worker_alive", condition=models.Q(state__in=["running", "draining"])
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_alive(self) -> bool:
        """Whether it has neither stopped nor been given up for dead."""
        return self.state in ALIVE
