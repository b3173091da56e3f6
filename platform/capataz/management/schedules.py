"""The schedules that come with the platform."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from capataz.models import Schedule
from capataz.models.schedule import Overlap


@dataclass(frozen=True)
class Shipped:
    """One schedule: its times as a crontab in UTC, and the type of its tasks."""

    name: str
    crontab: str
    type: str
    description: str
    enabled: bool = True


SHIPPED = (
    Shipped(
        "capataz: cleanup",
        "17 * * * *",  # away from the full hour, when everybody's schedules fire
        "cleanup",
        "Deletes finished tasks whose retention is over and prepares the partitions of the days ahead.",
    ),
    Shipped(
        "capataz: upkeep",
        "0 2 * * *",
        "upkeep",
        "Archives and deletes finished tasks whose retention is over, tidies the logs, vacuums.",
    ),
    Shipped(
        "capataz: backup",
        "0 * * * *",
        "backup",
        "Copies PostgreSQL and Redis to files, and deletes the backups that need not be kept.",
    ),
    Shipped(
        "capataz: external sync",
        "*/15 * * * *",
        "external_sync",
        "Keeps copies of GitHub issues and Slack messages; does nothing until some are configured.",
    ),
)


def create_missing() -> None:
    """Make those that do not exist by name; what is there, and what somebody has made of it, stays."""
    existing = set(PeriodicTask.objects.values_list("name", flat=True))
    for shipped in SHIPPED:
        if shipped.name not in existing:
            _create(shipped)


@transaction.atomic
def _create(shipped: Shipped) -> None:
    made = PeriodicTask.objects.create(
        name=shipped.name,
        task=shipped.type,
        crontab=_crontab(shipped.crontab),
        description=shipped.description,
        enabled=shipped.enabled,
    )
    # Each goes on from where the last one stopped: a second one beside it would only be in its way.
    Schedule.objects.create(periodic_task=made, overlap=Overlap.SKIP)


def _crontab(text: str) -> CrontabSchedule:
    fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    times = dict(zip(fields, text.split(), strict=True))
    # Several equal rows may exist already: the schedules' admin does not prevent it.
    found = CrontabSchedule.objects.filter(**times, timezone="UTC").first()
    return found or CrontabSchedule.objects.create(**times, timezone="UTC")
