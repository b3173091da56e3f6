"""The archive: what retention deletes of dead tasks is on disk first, whatever happens in between."""

import gzip
import json
import os
import stat
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from capataz.lifecycle import archive, retention
from capataz.lifecycle.retention import prune
from capataz.models import Attempt, Event, Outcome, Task
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, tasks
from tests.lifecycle.test_retention import partitions

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.ARCHIVE_DIR = tmp_path / "archive"
    return Path(settings.ARCHIVE_DIR)


def dead(count: int, *, ago: timedelta = 100 * DAY) -> list[Task]:
    made = tasks(count, data={"message": "ñ"})
    Task.objects.filter(pk__in=[task.pk for task in made]).update(
        state=State.DEAD, finished_at=Now() - ago, error="it failed"
    )
    return made


def archived(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl.gz")) for line in gzip.open(path)]


def archived_ids(folder: Path) -> list[str]:
    return [each["id"] for each in archived(folder)]


def test_a_dead_task_is_in_the_archive_with_its_attempts_and_events(
    worker: StagedWorker, folder: Path
) -> None:
    [task] = tasks(1, data={"message": "ñ"}, key="invoice-7")
    [grant] = worker.run(task)
    worker.end([grant], State.DEAD, Outcome.FAILED, error="no such month")
    Task.objects.update(finished_at=Now() - 100 * DAY)
    assert prune()["dead"] == 1
    [line] = archived(folder)
    assert (line["id"], line["key"], line["state"]) == (str(task.pk), "invoice-7", "dead")
    assert line["payload"] == {"message": "ñ"}
    assert [(each["outcome"], each["error"]) for each in line["attempts"]] == [("failed", "no such month")]
    assert [each["kind"] for each in line["events"]] == list(
        Event.objects.filter(task_id=task.pk).order_by("id").values_list("kind", flat=True)
    )
    assert line["events"]
    assert not Task.objects.exists()


def test_only_what_is_deleted_is_archived_and_only_the_outcomes_that_are_named(
    folder: Path, settings: Any
) -> None:
    [old], [young] = dead(1), dead(1, ago=80 * DAY)
    succeeded = dead(1)
    Task.objects.filter(pk=succeeded[0].pk).update(state=State.SUCCEEDED)
    prune()
    assert archived_ids(folder) == [str(old.pk)]
    assert list(Task.objects.values_list("pk", flat=True)) == [young.pk]
    settings.ARCHIVED = []
    prune(dead=DAY)
    assert archived_ids(folder) == [str(old.pk)]
    assert not Task.objects.exists()


def test_many_go_in_batches_a_file_each_that_only_the_owner_reads(folder: Path) -> None:
    made = dead(25)
    assert prune(batch=10)["dead"] == 25
    files = list(folder.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(archived_ids(folder)) == sorted(str(task.pk) for task in made)


def test_nothing_to_archive_makes_no_file(folder: Path) -> None:
    dead(1, ago=DAY)
    prune()
    assert not folder.exists()


@pytest.mark.django_db(transaction=True)
def test_a_crash_between_writing_and_deleting_repeats_a_task_and_loses_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dead(3)

    def crash(ids: Any) -> None:
        Task.objects.filter(pk__in=ids).delete()
        if ids:
            assert len(archived(folder)) == 3, "it is in the archive before the deletion can commit"
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, "_delete", crash)
        with pytest.raises(KeyboardInterrupt):
            prune()
    assert Task.objects.count() == 3
    assert prune()["dead"] == 3
    assert sorted(archived_ids(folder)) == sorted(2 * [str(task.pk) for task in made])
    assert not Task.objects.exists()


def test_what_cannot_be_written_is_not_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead(3)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            prune()
    assert Task.objects.count() == 3
    assert list(folder.iterdir()) == []


def test_what_a_crash_left_unfinished_goes_when_nobody_can_be_at_it(folder: Path) -> None:
    folder.mkdir()
    old, new = folder / ".new-old", folder / ".new-new"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 3 * 86_400,) * 2)
    prune()
    assert list(folder.iterdir()) == [new]


def test_a_task_that_is_tried_again_meanwhile_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again, died_again, gone = dead(3)
    write = archive.write

    def write_slowly(*args: Any) -> Any:
        written = write(*args)
        Task.objects.filter(pk=again.pk).update(state=State.QUEUED, finished_at=None)
        Task.objects.filter(pk=died_again.pk).update(finished_at=Now())
        return written

    monkeypatch.setattr(archive, "write", write_slowly)
    assert prune()["dead"] == 1
    assert set(Task.objects.values_list("pk", flat=True)) == {again.pk, died_again.pk}
    assert str(gone.pk) in archived_ids(folder)


def test_a_locked_task_is_waited_for_by_nobody(transactional_db: None, locked: Any, folder: Path) -> None:
    one, _ = dead(2)
    with locked(one):
        assert prune(batch=1)["dead"] == 0
        assert prune()["dead"] == 1
    assert list(Task.objects.values_list("pk", flat=True)) == [one.pk]
    assert prune()["dead"] == 1


def test_the_server_keeps_the_rows_and_hands_them_over_a_few_at_a_time(transactional_db: None) -> None:
    ids = [task.pk for task in dead(2)]
    with transaction.atomic(), archive._rows("archive_these", {"ids": ids}) as rows:
        next(rows)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_cursors WHERE name = 'capataz_archive'")
            assert cursor.fetchone() == (1,)


@pytest.fixture
def old_day() -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_char(current_date - 120, 'YYYYMMDD'), current_date - 120, current_date - 119"
        )
        name, first, last = cursor.fetchone()
        table = f"capataz_attempt_{name}"
        cursor.execute(
            f"CREATE TABLE {table} PARTITION OF capataz_attempt FOR VALUES FROM ('{first}') TO ('{last}')"
        )
    yield table


def test_a_day_is_kept_for_as_long_as_a_dead_task_may_have_attempts_in_it(old_day: str) -> None:
    def is_there() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [old_day])
            return bool(cursor.fetchone()[0])

    [task] = dead(1, ago=50 * DAY)
    Task.objects.update(created_at=Now() - 121 * DAY)
    Attempt.objects.create(
        task_id=task.pk, run=1, worker_id=1, outcome="failed", finished_at=Now() - 120 * DAY
    )
    prune()
    assert is_there()
    Task.objects.all().delete()
    prune()
    assert not is_there()


def test_the_oldest_task_to_archive_need_not_have_the_first_id(old_day: str, folder: Path) -> None:
    for key, age in (
        ("ffffffff-0000-4000-8000-000000000000", 200),
        ("00000000-0000-4000-8000-000000000000", 5),
    ):
        [task] = tasks(1, key=key)
        Task.objects.filter(pk=task.pk).update(
            state=State.DEAD, created_at=Now() - age * DAY, finished_at=Now() - DAY
        )
    prune()
    assert old_day in partitions("capataz_attempt")
    Task.objects.all().delete()
    prune()
    assert old_day not in partitions("capataz_attempt")


def test_an_archive_that_cannot_be_written_keeps_nothing_else_from_being_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(30, "Read-only file system")

    [stays], [goes] = dead(1), tasks(1)
    Task.objects.filter(pk=goes.pk).update(state=State.EXPIRED, finished_at=Now() - 100 * DAY)
    done: list[str] = []
    monkeypatch.setattr(archive, "write", fail)
    monkeypatch.setattr(retention, "_drop_partitions", lambda age: done.append("dropped"))
    with pytest.raises(OSError, match="Read-only"):
        prune()
    assert list(Task.objects.all()) == [stays]
    assert done == ["dropped"]
