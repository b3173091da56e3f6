"""The front matter index is as the files are: whatever they hold, and whoever else writes it."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from pydantic import ValidationError
from pytest_django import Settings

from capataz.errors import Discard, TaskCancelled
from capataz.handlers import RunningTask
from capataz.lifecycle.submission import submit
from tasks import front_matter_index, roots
from tasks.globs import matches
from tasks.models import IndexedFile
from tests.processes import Processes

pytestmark = pytest.mark.django_db

LONG_AGO = -3600.0


@pytest.fixture(autouse=True)
def data(settings: Settings, tmp_path: Path) -> Path:
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT, settings.EXPORT_ROOT = tmp_path / "data", tmp_path / "exports"
    settings.DATA_ROOT.mkdir()
    return tmp_path / "data"


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as changed long ago, so that its stamp is believed."""
    monkeypatch.setattr(front_matter_index, "YOUNG", LONG_AGO)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    seen: list[str] = []
    read = front_matter_index._read

    def noted(file: tuple[roots.Location, str]) -> Any:
        seen.append(str(file[0]))
        return read(file)

    monkeypatch.setattr(front_matter_index, "_read", noted)
    return seen


def write(path: Path, text: str | bytes = "---\ntitle: One\n---\nHello\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def index(directory: str = "/data", told: list[int] | None = None, **payload: Any) -> dict[str, Any]:
    told = [] if told is None else told
    task = RunningTask(uuid.uuid4(), "frontmatter_index", 1, 1, lambda percent, message: told.append(percent))
    tree = front_matter_index.index.payload.validate_python({"directory": directory, **payload})
    result = front_matter_index.index.function(task, tree)
    assert told == sorted(told)
    json.dumps(result, allow_nan=False)
    return result


def counts(result: dict[str, Any]) -> tuple[int, int, int, int]:
    return result["indexed"], result["unchanged"], result["removed"], len(result["failed"])


def paths() -> list[str]:
    return list(IndexedFile.objects.values_list("path", flat=True))


# --- What becomes of a tree ---------------------------------------------------------------------------


def test_a_row_says_what_the_file_says(data: Path) -> None:
    text = "---\ntitle: Día 1\ndate: 2026-03-04\ntags: [a, b, a, 3]\nmore: {x: [1, 2.5, null]}\n---\nHello\n"
    file = write(data / "notes" / "a.md", text)
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert counts(index()) == (1, 0, 0, 0)
    row = IndexedFile.objects.get()
    assert (row.root, row.path, row.size) == ("data", "/data/notes/a.md", len(text.encode()))
    assert (row.title, row.date, row.tags) == ("Día 1", date(2026, 3, 4), ["a", "b", "3"])
    assert row.front_matter["more"] == {"x": [1, 2.5, None]}
    assert row.modified == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("date: 2026-03-04T10:00:00+02:00\ntags: a, b", ("", date(2026, 3, 4), ["a", "b"])),
        ("title: 2026\ndate: soon\ntags: {a: b}", ("2026", None, [])),
        ("title: [x]\ndate: 5\ntags: [[x], null, '']", ("", None, [])),
    ],
)
def test_what_is_no_title_date_or_tag_is_left_out(data: Path, head: str, expected: Any) -> None:
    write(data / "a.md", f"---\n{head}\n---\n")
    assert index()["failed"] == []
    row = IndexedFile.objects.get()
    assert (row.title, row.date, row.tags) == expected


def test_a_file_without_front_matter_is_indexed(data: Path) -> None:
    write(data / "a.md", "# Hello")
    write(data / "empty.md", "")
    assert counts(index()) == (2, 0, 0, 0)
    assert IndexedFile.objects.get(path="/data/a.md").front_matter == {}


def test_a_run_changes_what_has_changed(data: Path) -> None:
    for name in ("a.md", "b.md", "deep/er/c.md", "d.txt", ".hidden/e.md", ".f.md"):
        write(data / name)
    assert counts(index()) == (3, 0, 0, 0)
    write(data / "a.md", "---\ntitle: Two\n---\n")
    (data / "b.md").unlink()
    write(data / "new.md")
    assert counts(index()) == (2, 1, 1, 0)
    assert paths() == ["/data/a.md", "/data/deep/er/c.md", "/data/new.md"]
    assert IndexedFile.objects.get(path="/data/a.md").title == "Two"


def test_what_has_not_changed_is_not_even_read(data: Path, old_files: None, reads: list[str]) -> None:
    write(data / "a.md")
    write(data / "b.md")
    index()
    reads.clear()
    write(data / "b.md", "---\ntitle: Two\n---\n")
    assert counts(index()) == (1, 1, 0, 0)
    assert set(reads) == {"/data/b.md"}


def test_a_change_that_leaves_size_and_time_as_they_were_is_seen(data: Path, old_files: None) -> None:
    file = write(data / "a.md", "---\ntitle: One\n---\n")
    index()
    status = file.stat()
    write(file, "---\ntitle: Two\n---\n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(index()) == (1, 0, 0, 0)
    assert IndexedFile.objects.get().title == "Two"


def test_the_stamp_of_a_file_that_changed_just_now_is_not_believed(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_matter_index, "YOUNG", 3600.0)
    monkeypatch.setattr(front_matter_index, "_stamp", lambda status: "the same tick")
    write(data / "a.md", "---\ntitle: One\n---\n")
    index()
    write(data / "a.md", "---\ntitle: Two\n---\n")
    assert counts(index()) == (1, 0, 0, 0)
    assert IndexedFile.objects.get().title == "Two"


def test_a_file_that_was_only_touched_is_unchanged(data: Path, old_files: None, reads: list[str]) -> None:
    file = write(data / "a.md")
    index()
    os.utime(file, (5, 5))
    assert counts(index()) == (0, 1, 0, 0)
    assert IndexedFile.objects.get().modified == datetime.fromtimestamp(5, UTC)
    reads.clear()
    assert counts(index()) == (0, 1, 0, 0)
    assert reads == []


def test_a_run_is_about_its_directory_its_pattern_and_its_paths(data: Path) -> None:
    for name in ("a/1.md", "a/b/2.md", "a/3.txt", "ab/4.md", "5.md"):
        write(data / name)
    assert counts(index("/data/a")) == (2, 0, 0, 0)
    assert counts(index(pattern="*")) == (1, 0, 0, 0)
    assert counts(index(pattern="a/*.txt")) == (1, 0, 0, 0)
    assert counts(index()) == (1, 3, 0, 0)
    for file in data.rglob("*.*"):
        file.unlink()
    assert counts(index("/data/a", paths=["b", "9.md"])) == (0, 0, 1, 0)
    assert counts(index(paths=["a/1.md"])) == (0, 0, 1, 0)
    assert paths() == ["/data/5.md", "/data/a/3.txt", "/data/ab/4.md"]
    assert counts(index("/data/ab/")) == (0, 0, 1, 0)
    assert counts(index(pattern="**")) == (0, 0, 2, 0)


def test_of_a_deleted_folder_nothing_is_left_and_a_root_that_is_gone_is_a_failure(data: Path) -> None:
    write(data / "a" / "1.md")
    index()
    (data / "a" / "1.md").unlink()
    (data / "a").rmdir()
    assert counts(index("/data/a")) == (0, 0, 1, 0)
    write(data / "a" / "1.md")
    index()
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError):
        index()
    assert paths() == ["/data/a/1.md"]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("**/*.md", ["a.md", "x/a.md", "x/y/a.md"], ["a.txt", "x/a.md/b"]),
        ("*.md", ["a.md"], ["x/a.md"]),
        ("x/**/z/*", ["x/z/a", "x/1/2/z/a"], ["z/a", "x/z"]),
        ("**/x/**", ["x/a", "1/x/a/b"], ["a", "1/a"]),
        ("[ab]?.md", ["a1.md"], ["c1.md", "a.md"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes + no if matches(pattern, name.split("/"))] == yes


def test_no_pattern_takes_long() -> None:
    start = time.process_time()
    assert not matches("/".join(["**", "a"] * 40), ["a"] * 39 + ["b"])
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"directory": "/etc"}, "directory"),
        ({"directory": "/data/../x"}, "directory"),
        ({"directory": "/data", "pattern": "../*"}, "pattern"),
        ({"directory": "/data", "pattern": "/a"}, "pattern"),
        ({"directory": "/data", "paths": ["../a"]}, "'..'"),
        ({"directory": "/data", "paths": ["/data/a"]}, "relative"),
        ({"directory": "/data", "paths": []}, "paths"),
        ({"directory": "/data", "other": 1}, "other"),
    ],
)
def test_what_makes_no_sense_is_refused(payload: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        front_matter_index.index.payload.validate_python(payload)


# --- Files that somebody made to harm -----------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {" + ", ".join(f"k{n}: {n}" for n in range(50)) + "}\n"
MERGES += "\n".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 50)}]}}"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        MERGES,
        "a: " + "[" * 3000,
        "a: " + "x" * 100_000,
        "a: &a {<<: *a}",
        "a: !!python/object/apply:os.system [true]",
        "a: !!int ''",
        "a: !!bool maybe",
        "a: !!timestamp soon",
        "a: [1",
        b"\xff\xfe",
    ],
)
def test_a_bad_file_is_an_error_beside_the_others(data: Path, content: str | bytes) -> None:
    head = content if isinstance(content, bytes) else content.encode()
    write(data / "bad.md", b"---\n" + head + b"\n---\n")
    write(data / "good.md")
    result = index()
    assert counts(result) == (1, 0, 0, 1)
    assert [each["path"] for each in result["failed"]] == ["/data/bad.md"]
    assert result["failed"][0]["error"]
    assert paths() == ["/data/good.md"]


def test_links_fifos_large_files_and_strange_names_are_errors(data: Path, tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "secret.md", "---\ntitle: secret\n---\n")
    (data / "link.md").symlink_to(secret)
    (data / "folder").symlink_to(secret.parent)
    os.mkfifo(data / "fifo.md")
    write(data / "large.md", b"x" * (1024 * 1024 + 1))
    Path(os.fsdecode(os.fsencode(data) + b"/\xff.md")).write_text("")
    write(data / "new\nline.md")
    write(data / "good.md")
    result = index()
    assert counts(result) == (1, 0, 0, 5)
    assert paths() == ["/data/good.md"]
    assert "secret" not in json.dumps(result)
    with pytest.raises(Discard):
        index("/data/folder")


def test_a_file_that_breaks_leaves_the_index_and_one_that_cannot_be_opened_stays(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.md", "b.md", "folder/c.md"):
        write(data / name)
    index()
    write(data / "a.md", "---\n[\n---\n")
    reading, entries = roots.reading, roots._entries

    def refusing(location: roots.Location, *, limit: int) -> Any:
        if location.name == "b.md":
            raise PermissionError("not now")
        return reading(location, limit=limit)

    def partly(folder: roots.Location) -> Any:
        if folder.name == "folder":
            raise PermissionError("not now")
        return entries(folder)

    monkeypatch.setattr(front_matter_index, "reading", refusing)
    monkeypatch.setattr(roots, "_entries", partly)
    result = index()
    assert sorted(each["path"] for each in result["failed"]) == ["/data/a.md", "/data/b.md", "/data/folder"]
    assert result["removed"] == 1
    assert paths() == ["/data/b.md", "/data/folder/c.md"]


def test_failures_are_capped_and_counted(data: Path) -> None:
    for number in range(1500):
        write(data / f"{'x' * 100}{number}.md", "---\n[" + "y" * 300)
    result = index()
    assert len(result["failed"]) + result["omitted"] == 1500
    assert result["omitted"] > 0
    assert len(json.dumps(result)) < 500_000


def test_too_many_files_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_matter_index, "MOST_FILES", 2)
    for number in range(3):
        write(data / f"{number}.md")
    with pytest.raises(Discard, match="more than 2 files"):
        index()


# --- Many files, several processes, two runs at once --------------------------------------------------


def test_many_files_are_read_by_several_processes_that_end(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    pids = data.parent / "pids"
    pids.mkdir()
    read = front_matter_index._read_contents

    def noted(location: roots.Location, known: str) -> Any:
        (pids / str(os.getpid())).touch()
        return read(location, known)

    monkeypatch.setattr(front_matter_index, "_read_contents", noted)
    for number in range(2000):
        write(data / str(number % 20) / f"{number}.md", f"---\ntitle: T{number}\n---\n")
    write(data / "bad.md", "---\n[\n---\n")
    told: list[int] = []
    assert counts(index(told=told)) == (2000, 0, 0, 1)
    assert len(told) > 50
    assert set(IndexedFile.objects.values_list("title", flat=True)) == {
        f"T{number}" for number in range(2000)
    }
    used = {int(each.name) for each in pids.iterdir()}
    assert len(used) > 1 and os.getpid() not in used
    assert not any(psutil.pid_exists(pid) for pid in used)
    assert counts(index()) == (0, 2000, 0, 1)


def test_a_cancel_ends_the_processes_and_writes_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for number in range(200):
        write(data / f"{number}.md")

    def cancel(percent: int, message: str) -> None:
        assert psutil.Process().children()
        raise TaskCancelled("stop")

    before = set(psutil.Process().children())
    tree = front_matter_index.index.payload.validate_python({"directory": "/data"})
    with pytest.raises(TaskCancelled):
        front_matter_index.index.function(RunningTask(uuid.uuid4(), "x", 1, 1, cancel), tree)
    assert set(psutil.Process().children()) <= before
    assert paths() == []


def test_a_run_that_was_overtaken_writes_what_is_there_now(
    data: Path, old_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(data / "changed.md", "---\ntitle: Old\n---\n")
    write(data / "deleted.md")
    later = front_matter_index._write

    def overtaken(*given: Any) -> Any:
        monkeypatch.setattr(front_matter_index, "_write", later)
        write(data / "changed.md", "---\ntitle: New\n---\n")
        write(data / "added.md")
        (data / "deleted.md").unlink()
        index()
        return later(*given)

    monkeypatch.setattr(front_matter_index, "_write", overtaken)
    assert counts(index()) == (0, 2, 0, 0)
    assert paths() == ["/data/added.md", "/data/changed.md"]
    assert IndexedFile.objects.get(path="/data/changed.md").title == "New"


def test_what_changes_while_a_run_reads_is_read_again(
    data: Path, old_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(data / "a.md", "---\ntitle: Old\n---\n")
    later = front_matter_index._write

    def after_a_change(*given: Any) -> Any:
        write(data / "a.md", "---\ntitle: New and longer\n---\n")
        return later(*given)

    monkeypatch.setattr(front_matter_index, "_write", after_a_change)
    assert counts(index()) == (1, 0, 0, 0)
    assert IndexedFile.objects.get().title == "New and longer"


def test_a_young_file_that_looks_the_same_is_read_again_under_the_lock(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_matter_index, "YOUNG", 3600.0)
    monkeypatch.setattr(front_matter_index, "_stamp", lambda status: "the same tick")
    write(data / "a.md", "---\ntitle: Old\n---\n")
    later = front_matter_index._write

    def overtaken(*given: Any) -> Any:
        write(data / "a.md", "---\ntitle: New\n---\n")
        return later(*given)

    monkeypatch.setattr(front_matter_index, "_write", overtaken)
    index()
    assert IndexedFile.objects.get().title == "New"


@pytest.mark.django_db(transaction=True)
def test_two_runs_of_a_root_write_one_after_the_other(data: Path, eventually: Callable[..., Any]) -> None:
    write(data / "a.md")
    results: list[Any] = []

    def run() -> None:
        results.append(index())
        connection.close()

    def is_waiting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = %s",
                [front_matter_index.INDEX_LOCK],
            )
            return bool(cursor.fetchone()[0])

    from django.db import transaction

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(%s, hashtext('data'))", [front_matter_index.INDEX_LOCK]
            )
        thread = threading.Thread(target=run)
        thread.start()
        eventually(is_waiting)
        write(data / "b.md")
    thread.join()
    assert [counts(each) for each in results] == [(2, 0, 0, 0)]


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_it(data: Path, platform: Processes, eventually: Callable[..., Any]) -> None:
    for number in range(100):
        write(data / f"{number}.md")
    platform.start_dispatcher()
    platform.start_worker("1,1", DATA_ROOT=str(data))
    task = submit("frontmatter_index", {"directory": "/data"})
    eventually(lambda: task.refresh_from_db() or task.state == "succeeded" or task.error)
    assert task.error is None
    assert counts(task.result) == (100, 0, 0, 0)
    assert IndexedFile.objects.count() == 100


# --- In the admin -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "may_look"), [("viewer", False), ("operator", True)])
def test_who_may_look_finds_by_path_or_tag_and_changes_nothing(data: Path, role: str, may_look: bool) -> None:
    write(data / "first.md", "---\ntags: [red]\n---\n")
    write(data / "second.md", "---\ntags: [blue, redder]\n---\n")
    index()
    call_command("setup_platform", verbosity=0)
    person = User.objects.create_user("ana", is_staff=True)
    person.groups.set(Group.objects.filter(name__in=["viewer", role]))
    client = Client()
    client.force_login(person)
    row = IndexedFile.objects.get(path="/data/first.md")
    place = "/admin/tasks/indexedfile/"
    assert client.get(place).status_code == (200 if may_look else 403)
    assert client.get(f"{place}{row.pk}/change/").status_code == (200 if may_look else 403)
    assert client.post(f"{place}{row.pk}/delete/").status_code == 403
    for term, expected in (("/data/first.md", 1), ("red", 1), ("first", 0), ("", 2)):
        page = client.get(place, {"q": term}).content
        assert page.count(b".md</a>") == (expected if may_look else 0)
