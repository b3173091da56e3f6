"""Upkeep: what keeps the platform in shape, once a night and once an hour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings

from capataz.handlers import RunningTask, handler
from capataz.policy import fixed
from tasks.payloads import Payload


class Nothing(Payload):
    """The settings say everything."""


@handler(
    "upkeep",
    payload=Nothing,
    queue="maintenance",
    retry=fixed(600, attempts=3),
    soft_time_limit=7100,
    time_limit=7200,
)
def keep_up(task: RunningTask, nothing: Nothing) -> dict[str, Any]:
    """Mend workflows, archive and delete what is past its time, tidy the logs, vacuum; returns what was done.

    Each step may be repeated: the next attempt, or the next night, goes on from there.
    """
    # Imported here: the verbs need models, and handlers are registered before Django has loaded them.
    from capataz.database import driver
    from capataz.lifecycle.retention import prune
    from capataz.lifecycle.settling import repair
    from capataz.lifecycle.vacuum import vacuum
    from capataz.models.report import Report
    from capataz.services.logs import tidy

    task.progress(2, "workflows")
    mended = repair(driver())
    task.progress(5, "finished tasks")
    deleted = prune()
    reports = Report.objects.prune(settings.KEEP_REPORTS_DAYS)
    task.progress(50, "logs")
    logs = tidy(Path(settings.CAPATAZ_DATA_DIR) / "logs", settings.KEEP_LOGS_DAYS)
    task.progress(60, "tables")
    tables = vacuum()
    task.progress(100, "done")
    return {
        "deleted": deleted, "archived": settings.ARCHIVED, "reports": reports, "logs": logs, "tables": tables,
        "mended": mended,
    }  # fmt: skip


@handler(
    "backup",
    payload=Nothing,
    queue="maintenance",
    retry=fixed(300, attempts=2),
    soft_time_limit=7100,
    time_limit=7200,
)
def back_up(task: RunningTask, nothing: Nothing) -> dict[str, Any]:
    """Copy PostgreSQL and Redis to files, and delete backups that need not be kept; returns what it made."""
    from capataz.services import backup

    return backup.back_up(task.progress)
