"""The upkeep handlers say what they did, and may be run twice."""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db.models.functions import Now
from pytest_django import Settings

from capataz.handlers import Handler, RunningTask
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tasks import upkeep

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: Settings) -> Path:
    settings.CAPATAZ_DATA_DIR = tmp_path
    settings.ARCHIVE_DIR, settings.BACKUP_DIR = tmp_path / "archive", tmp_path / "backups"
    return tmp_path


def run(handler: Handler[Any]) -> tuple[Any, list[int]]:
    """The result, and the progress that was shown."""
    shown: list[int] = []
    task = RunningTask(uuid.uuid4(), handler.name, 1, 1, lambda percent, message: shown.append(percent))
    return handler.function(task, handler.load("{}")), shown


def test_a_night_archives_tidies_and_vacuums(home: Path) -> None:
    old = submit("demo.echo", {"message": "x"})
    Task.objects.filter(pk=old.pk).update(state="dead", finished_at=Now() - timedelta(days=91))
    (home / "logs").mkdir()
    (home / "logs" / "web.log.1").touch()
    os.utime(home / "logs" / "web.log.1", (time.time() - 15 * 86_400,) * 2)
    result, shown = run(upkeep.keep_up)
    assert result["deleted"] == {"succeeded": 0, "dead": 1, "cancelled": 0, "expired": 0}
    assert result["archived"] == ["dead"]
    assert result["logs"]["deleted"] == 1
    assert result["tables"]["capataz_event"] == "analyzed"
    assert len(list((home / "archive").glob("dead-*.jsonl.gz"))) == 1
    assert shown == sorted(shown) and shown[-1] == 100
    again, _ = run(upkeep.keep_up)
    assert (again["deleted"]["dead"], again["logs"]["deleted"]) == (0, 0)


def test_an_hour_makes_a_backup_and_says_where(home: Path, broker: redis.Redis) -> None:
    result, shown = run(upkeep.back_up)
    assert Path(result["backup"]).parent == home / "backups"
    assert result["postgres"]["sha256"] and result["deleted"] == []
    assert len(shown) > 1
