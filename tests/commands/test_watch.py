"""``manage.py watch``: whatever happens to files, folders and servers, the index ends as the files are."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from capataz.models import Task
from capataz.uniqueness import Debounce, Throttle
from tasks.management.commands.watch import Watcher, _policy
from tasks.models import IndexedFile
from tests.processes import Process, Processes


@pytest.fixture
def data(settings: Settings, tmp_path: Path) -> Path:
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT, settings.EXPORT_ROOT = tmp_path / "data", tmp_path / "exports"
    (settings.DATA_ROOT / "notes").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def start(platform: Processes, data: Path, eventually: Callable[..., Any]) -> Callable[..., Process]:
    """Start the real command, and wait until it watches."""

    def begin(*options: str) -> Process:
        command = [sys.executable, "manage.py", "watch", "/data/notes", *options]
        process = platform.start("watch", command, DATA_ROOT=str(data))
        eventually(lambda: b"watching /data/notes" in process.log.read_bytes())
        return process

    return begin


def write(path: Path, title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\ntitle: {title}\n---\n")


def titles() -> dict[str, str]:
    return dict(IndexedFile.objects.values_list("path", "title"))


def runs() -> int:
    return Task.objects.filter(type="frontmatter_index").count()


def forget_runs() -> None:
    Task.objects.all().delete()


def test_what_is_added_changed_and_deleted_is_indexed(
    start: Callable[..., Process], platform: Processes, data: Path, eventually: Callable[..., Any]
) -> None:
    notes = data / "notes"
    write(notes / "before.md", "Before")
    platform.start_dispatcher()
    platform.start_worker("1,1", DATA_ROOT=str(data))
    start("--debounce", "50")
    eventually(lambda: titles() == {"/data/notes/before.md": "Before"})

    write(notes / "a.md", "One")
    eventually(lambda: titles().get("/data/notes/a.md") == "One")
    write(notes / "a.md", "Two")
    eventually(lambda: titles().get("/data/notes/a.md") == "Two")
    write(notes / "deep" / "er" / "b.md", "B")
    eventually(lambda: titles().get("/data/notes/deep/er/b.md") == "B")
    write(notes / "deep" / "er" / "b.md", "C")
    eventually(lambda: titles().get("/data/notes/deep/er/b.md") == "C")
    (notes / "deep" / "er").rename(notes / "other")
    eventually(lambda: titles().get("/data/notes/other/b.md") == "C")
    shutil.rmtree(notes / "other")
    (notes / "before.md").unlink()
    eventually(lambda: titles() == {"/data/notes/a.md": "Two"})

    shutil.rmtree(notes)
    eventually(lambda: titles() == {})
    write(notes / "a.md", "Again")
    eventually(lambda: titles() == {"/data/notes/a.md": "Again"})
    write(notes / "a.md", "And again")
    eventually(lambda: titles() == {"/data/notes/a.md": "And again"})

    for number in range(1500):
        write(notes / f"{number % 50}.md", f"T{number}")
    expected = {f"/data/notes/{number}.md": f"T{1450 + number}" for number in range(50)}
    eventually(lambda: titles() == {"/data/notes/a.md": "And again", **expected})


def test_a_storm_of_changes_leaves_few_runs_and_other_files_leave_none(
    start: Callable[..., Process], data: Path, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    notes = data / "notes"
    (notes / "elsewhere").symlink_to(tmp_path)
    start("--debounce", "60000", "--max-wait", "600000", "--ignore-initial")
    (notes / "a.txt").write_text("x")
    (notes / ".hidden.md").write_text("x")
    write(tmp_path / "outside.md", "Outside")
    time.sleep(1.0)  # nothing can be waited for: a run would have been submitted by now
    assert runs() == 0
    for number in range(300):
        write(notes / f"{number % 10}.md", f"T{number}")
        time.sleep(0.002)
    eventually(lambda: runs() == 1)
    task = Task.objects.get()
    assert task.payload == {"directory": "/data/notes", "pattern": "**/*.md"}
    before = task.run_at
    write(notes / "last.md", "Last")
    eventually(lambda: task.refresh_from_db() or task.run_at > before)
    assert runs() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_begins_with_a_run_and_stops_when_asked(
    start: Callable[..., Process], eventually: Callable[..., Any], number: signal.Signals
) -> None:
    process = start()
    eventually(lambda: runs() == 1)
    process.signal(number)
    assert process.popen.wait(timeout=60) == 0
    assert "Traceback" not in process.log.read_text()


def test_it_waits_for_postgresql_and_then_misses_nothing(
    start: Callable[..., Process], data: Path, servers: Any, eventually: Callable[..., Any]
) -> None:
    from django.db import connection

    process = start("--ignore-initial")
    connection.close()
    servers.postgres.kill()
    write(data / "notes" / "a.md", "One")
    eventually(lambda: b"not accepted, trying again" in process.log.read_bytes())
    servers.postgres.start()
    servers.postgres.wait_until_ready()
    eventually(lambda: runs() == 1)
    assert process.is_alive()


def test_a_throttled_change_runs_at_once_and_the_last_one_too(
    start: Callable[..., Process], data: Path, eventually: Callable[..., Any]
) -> None:
    start("--throttle", "60000", "--ignore-initial")
    write(data / "notes" / "a.md", "One")
    eventually(lambda: runs() == 1)
    for number in range(5):
        write(data / "notes" / "a.md", f"T{number}")
        time.sleep(0.3)
    eventually(lambda: runs() == 2)
    first, second = Task.objects.order_by("created_at")
    assert first.run_at is None or first.run_at <= first.created_at
    assert second.run_at > second.created_at


def test_the_ways_of_gathering_changes(data: Path) -> None:
    asked = {"debounce": None, "throttle": None, "adaptive": False, "max_wait": None}
    assert _policy(asked) == Debounce(wait=0.3, max_wait=10)
    adaptive = Debounce(wait=0.3, factor=1.5, after=5, longest=5, max_wait=10)
    assert _policy({**asked, "adaptive": True}) == adaptive
    assert _policy({**asked, "debounce": 20_000}) == Debounce(wait=20, max_wait=20)
    assert _policy({**asked, "debounce": 100, "max_wait": 200}) == Debounce(wait=0.1, max_wait=0.2)
    assert _policy({**asked, "throttle": 2000}) == Throttle(period=2, trailing=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/etc"], "not under /data"),
        (["/data/../etc"], "'..'"),
        (["/data/nothing"], "is not there"),
        (["/data/link"], "symbolic link"),
        (["/data/file.md"], "not a folder"),
        (["/data/notes", "--debounce", "0"], "--debounce"),
        (["/data/notes", "--debounce", "500", "--max-wait", "100"], "max_wait must not be below wait"),
        (["/data/notes", "--throttle", "-1"], "--throttle"),
        (["/data/notes", "--throttle", "100", "--max-wait", "100"], "--max-wait"),
        (["/data/notes", "--throttle", "100", "--adaptive"], "not allowed with"),
        (["/data/notes", "--pattern", "../*.md"], "--pattern"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    data: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (data / "link").symlink_to(tmp_path)
    (data / "file.md").write_text("")
    with pytest.raises(CommandError) as raised:
        call_command("watch", *arguments)
    assert says in str(raised.value)


@pytest.mark.parametrize("name", ["/data/notes", "notes", "{data}/notes", "/data//notes/"])
def test_a_folder_may_be_named_as_clients_do_or_by_where_it_is(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    watched: list[str] = []
    monkeypatch.setattr(Watcher, "run", lambda self, begin_with_all: watched.append(str(self._place)))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    call_command("watch", name.format(data=data))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert watched == ["/data/notes"]
