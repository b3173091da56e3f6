"""``manage.py backup`` and ``restore``: nothing good is lost, and nothing is overwritten unasked."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django import Settings

from capataz import durable
from capataz.database import conninfo
from capataz.lifecycle.dispatch import EPOCH_KEY
from capataz.lifecycle.submission import submit
from capataz.models import Task
from capataz.services import backup, redis_copy
from capataz.services.errors import BackupFailed

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Settings, broker: redis.Redis) -> Path:
    settings.BACKUP_DIR = tmp_path / "backups"
    settings.DATABASE_URL = conninfo()  # that of the tests
    return settings.BACKUP_DIR


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty database."""
    name = "capataz_restored"
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name}")
    yield psycopg.conninfo.make_conninfo(conninfo(), dbname=name)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def rows(database: str, query: str) -> list[Any]:
    with psycopg.connect(database) as reader:
        return reader.execute(query).fetchall()


def test_a_backup_is_private_complete_and_names_no_password(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    commands: list[str] = []
    start = backup._start

    def listen(argv: list[str], *rest: Any, **options: Any) -> Any:
        commands.extend(argv)
        return start(argv, *rest, **options)

    monkeypatch.setattr(backup, "_start", listen)
    made = backup.back_up()
    [path] = backup.backups()
    assert str(path) == made["backup"]
    assert {file.name for file in path.iterdir()} == {"postgres.dump", "redis.jsonl.gz", "manifest.json"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert backup.read_manifest(path)["postgres"]["bytes"] == (path / "postgres.dump").stat().st_size
    secret = connection.settings_dict["PASSWORD"]
    assert secret and commands
    assert not [word for word in commands if secret in word]
    assert secret not in (path / "manifest.json").read_text()


def test_an_empty_database_gets_everything_back(folder: Path, database: str) -> None:
    task = submit("demo.echo", {"message": "ñ"}, key="mine")
    backup.back_up()
    latest = backup.find("latest")
    backup.restore_postgres(latest, backup.read_manifest(latest), database)
    assert rows(database, "SELECT id, key, state FROM capataz_task") == [(task.pk, "mine", "queued")]
    partitions = "SELECT count(*) FROM pg_inherits"
    assert rows(database, partitions) == rows(conninfo(), partitions)
    [[worker]] = rows(database, "SELECT nextval(pg_get_serial_sequence('capataz_worker', 'id'))")
    [[before]] = rows(conninfo(), "SELECT nextval(pg_get_serial_sequence('capataz_worker', 'id'))")
    assert worker > before + 1000, "an identity that a former worker may still have"


def test_a_database_in_use_is_refused_and_replaced_only_when_told(folder: Path) -> None:
    kept = submit("demo.echo", {"message": "kept"})
    call_command("backup", verbosity=0)
    submit("demo.echo", {"message": "later"})
    with pytest.raises(CommandError, match="the database has tasks: nothing was restored"):
        call_command("restore", "latest")
    assert Task.objects.count() == 2
    connection.close()
    call_command("restore", "latest", "--force")
    assert [task.pk for task in Task.objects.all()] == [kept.pk]


def test_messages_and_connected_processes_are_in_the_way(
    folder: Path, broker: redis.Redis, session: psycopg.Connection
) -> None:
    call_command("backup", verbosity=0)
    broker.lpush("default", "a message")
    with pytest.raises(CommandError, match=r"1 sessions of the platform.*Redis holds messages"):
        call_command("restore", "latest")
    assert broker.lrange("default", 0, -1) == [b"a message"]


@pytest.fixture
def session() -> Iterator[psycopg.Connection]:
    with psycopg.connect(conninfo(), application_name="capataz dispatcher") as made:
        yield made


def test_a_damaged_backup_is_refused_before_anything_is_touched(folder: Path) -> None:
    backup.back_up()
    path = backup.find("latest")
    with (path / "postgres.dump").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    with pytest.raises(CommandError, match="is damaged"):
        call_command("restore", "latest", "--force")


def test_a_restore_that_fails_half_way_leaves_the_database_as_it_was(folder: Path) -> None:
    backup.back_up()
    path = backup.find("latest")
    dump = path / "postgres.dump"
    dump.write_bytes(dump.read_bytes()[:-100])
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    manifest["postgres"] |= {"bytes": dump.stat().st_size, "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    task = submit("demo.echo", {"message": "precious"})
    connection.close()
    with pytest.raises(CommandError, match="The database is as it was"):
        call_command("restore", "latest", "--force")
    assert Task.objects.get().pk == task.pk


def test_a_reader_that_dies_at_the_end_of_a_line_has_nothing_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.back_up()
    task = submit("demo.echo", {"message": "precious"})
    connection.close()
    start = backup._start

    def die_early(argv: list[str], *rest: Any, **options: Any) -> Any:
        is_reader = argv[0].endswith("pg_restore") and "--list" not in argv
        return start(["sh", "-c", "echo 'SELECT 1;'; exit 1"] if is_reader else argv, *rest, **options)

    monkeypatch.setattr(backup, "_start", die_early)
    with pytest.raises(CommandError, match="The database is as it was"):
        call_command("restore", "latest", "--force")
    assert Task.objects.get().pk == task.pk


def test_without_pg_dump_the_error_says_how_to_mend_it_and_good_backups_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.BACKUP_HOURS, settings.BACKUP_DAYS = 1, 0
    backup.back_up()
    good = backup.backups()
    monkeypatch.setenv("CAPATAZ_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(CommandError, match=r"No pg_dump of version .* CAPATAZ_POSTGRES_BIN"):
        call_command("backup")
    assert backup.backups() == good
    assert {path.name for path in folder.iterdir()} == {good[0].name, ".lock"}


def test_a_full_disk_is_said_and_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(BackupFailed, match="No space left on device"):
        backup.back_up()
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_of_two_at_once_one_is_made(folder: Path) -> None:
    with backup._alone(folder) as alone:
        assert alone
        assert backup.back_up() == {"skipped": "another backup is being made"}
        with pytest.raises(CommandError, match="another backup"):
            call_command("backup")
    assert backup.backups() == []


def test_the_newest_of_the_last_hours_and_days_stay(folder: Path, settings: Settings) -> None:
    settings.BACKUP_HOURS, settings.BACKUP_DAYS = 3, 2
    names = [
        *("20260101T230000Z", "20260102T100000Z", "20260102T230000Z"),
        *("20260103T080000Z", "20260103T090000Z", "20260103T100000Z", "20260103T103000Z"),
    ]
    for name in [*names, "my-own-copy"]:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
    (folder / "20200101T000000Z").mkdir()  # without a manifest it is not ours to delete
    deleted = backup._rotate(folder)
    kept = {"20260103T103000Z", "20260103T090000Z", "20260103T080000Z", "20260102T230000Z"}
    assert {path.name for path in backup.backups()} == kept
    assert set(deleted) == set(names) - kept
    assert {path.name for path in folder.iterdir()} == kept | {"my-own-copy", "20200101T000000Z"}


def test_redis_gets_back_what_it_held_but_no_epoch_and_no_lock(
    folder: Path, broker: redis.Redis, settings: Settings
) -> None:
    broker.rpush("default", b"\x00\xff one", b"two")
    broker.hset("unacked", "tag", b"three")
    broker.zadd("unacked_index", {"tag": 7.5})
    broker.set("for a while", "x", px=600_000)
    broker.set("unacked_mutex", "held", px=600_000)
    broker.set(EPOCH_KEY, "1")
    made = backup.back_up()
    assert made["redis"]["keys"] == 4
    broker.flushdb()
    broker.set(EPOCH_KEY, "of the new one")
    broker.rpush("default", b"newer")
    assert backup.restore_redis(backup.find("latest"), settings.CELERY_BROKER_URL) == 4
    assert broker.lrange("default", 0, -1) == [b"\x00\xff one", b"two"]
    assert (broker.hget("unacked", "tag"), broker.zscore("unacked_index", "tag")) == (b"three", 7.5)
    assert 0 < broker.pttl("for a while") <= 600_000
    assert not broker.exists(EPOCH_KEY, "unacked_mutex")


def test_a_message_that_moves_meanwhile_is_in_the_copy(
    folder: Path, broker: redis.Redis, tmp_path: Path, settings: Settings
) -> None:
    """As a worker takes it, and gives it back, over and over."""
    broker.rpush("default", b"message")
    others = 1000  # so many that a reader of one after the other would be interrupted
    for number in range(others):
        broker.rpush(f"list-{number}", b"message")
    stopped, url = threading.Event(), settings.CELERY_BROKER_URL

    def move() -> None:
        with redis.Redis.from_url(url) as client:
            while not stopped.is_set():
                for one, other in (("lpop", "hset"), ("hdel", "rpush")):
                    pipeline = client.pipeline()
                    place = ["default"] if one == "lpop" else ["unacked", "tag"]
                    getattr(pipeline, one)(*place)
                    target = ["default", "message"] if other == "rpush" else ["unacked", "tag", "message"]
                    getattr(pipeline, other)(*target)
                    pipeline.execute()

    mover = threading.Thread(target=move)
    mover.start()
    try:
        counts = [redis_copy.write(url, tmp_path / f"copy-{number}") for number in range(20)]
    finally:
        stopped.set()
        mover.join()
    assert set(counts) == {others + 1}


def test_restore_without_a_name_lists_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backup.back_up()
    call_command("restore")
    assert backup.backups()[0].name in capsys.readouterr().out
    with pytest.raises(CommandError, match="is no backup"):
        call_command("restore", "yesterday")
