"""Client-named paths reach files under the roots and nothing else."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from capataz.errors import Discard
from tasks.roots import DATA, PROCESSED, UPLOADS, RefusedPath, contents, listing, locate, reading, writing

SECRET = b"nobody may read this"
LIMIT = 1000


@pytest.fixture(autouse=True)
def outside(settings: Settings, tmp_path: Path) -> Path:
    """A folder beside the roots, with a secret in it."""
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT = tmp_path / "data"
    for folder in ("uploads", "outside"):
        (tmp_path / folder).mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    return tmp_path / "outside"


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


def read(path: str) -> bytes:
    return contents(locate(path, UPLOADS, PROCESSED), limit=LIMIT)


def write(path: str, data: bytes, *, overwrite: bool = False) -> None:
    with writing(locate(path, PROCESSED, UPLOADS), overwrite=overwrite) as file:
        file.write(data)


def refusal(path: str) -> str:
    with pytest.raises(RefusedPath) as refused:
        read(path)
    return str(refused.value)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_an_absolute_looking_path_is_looked_up_under_its_root(uploads: Path) -> None:
    (uploads / "a.txt").write_bytes(b"hello")
    assert read("/uploads/a.txt") == read("a.txt") == read("./a.txt") == read("//uploads//a.txt") == b"hello"


def test_a_location_reads_as_the_client_named_it() -> None:
    assert str(locate("x/y.PNG", UPLOADS)) == "/uploads/x/y.PNG"
    assert locate("x/y.PNG", UPLOADS).suffix == ".png"


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret",
        "/uploads/../outside/secret",
        "/uploads/a/../../outside/secret",
        "..",
        "/etc/passwd",
        "/proc/self/environ",
        "/Uploads/a.txt",
        "/data/a.txt",
        "/",
        "",
        ".",
        "/uploads",
        "/uploads/",
        "a.txt\0.jpg",
        "a\nb",
        "a\x7f",
        "\udcff.txt",
        "x" * 1025,
        "x" * 256,
        "é" * 128,
        "a.txt/",
    ],
)
def test_a_path_that_leaves_the_roots_or_is_no_name_is_refused(path: str) -> None:
    assert "is refused" in refusal(path)


def test_a_refusal_names_the_path_and_is_never_retried() -> None:
    assert "'/etc/passwd'" in refusal("/etc/passwd")
    assert issubclass(RefusedPath, Discard)


@pytest.mark.parametrize(
    "path", ["%2e%2e/outside/secret", "..%2foutside/secret", "\uff0e\uff0e/secret", "...", "a\\..\\b"]
)
def test_what_only_looks_like_an_escape_is_an_ordinary_missing_file(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="/uploads/"):
        read(path)


def test_a_missing_file_is_named_as_the_client_named_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        read("/uploads/deep/er/none.txt")
    assert "/uploads/deep/er/none.txt" in str(missing.value)
    assert str(tmp_path) not in str(missing.value)


def test_a_link_to_a_file_is_refused(uploads: Path, outside: Path) -> None:
    (uploads / "link").symlink_to(outside / "secret")
    assert "symbolic link" in refusal("link")


def test_a_link_to_a_folder_is_refused_also_in_the_middle(uploads: Path, outside: Path) -> None:
    (uploads / "folder").symlink_to(outside)
    assert "symbolic link" in refusal("folder/secret")
    with pytest.raises(RefusedPath):
        write("/uploads/folder/new", b"x")
    assert not (outside / "new").exists()


def test_a_link_that_stays_inside_is_refused_too(uploads: Path) -> None:
    (uploads / "a.txt").write_bytes(b"x")
    (uploads / "link").symlink_to("a.txt")
    assert "symbolic link" in refusal("link")


def test_a_link_that_is_swapped_in_between_never_leads_out(uploads: Path, outside: Path) -> None:
    (uploads / "real").mkdir()
    (uploads / "real" / "secret").write_bytes(b"harmless")
    (uploads / "link").symlink_to(outside)
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for source in ("real", "link"):
                (uploads / source).rename(uploads / "door")
                (uploads / "door").rename(uploads / source)

    seen = set()
    flipper = threading.Thread(target=flip)
    flipper.start()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            seen.add(read("door/secret"))
        except (RefusedPath, FileNotFoundError) as error:
            seen.add(type(error).__name__.encode())
    stop.set()
    flipper.join()
    assert SECRET not in seen
    assert {b"harmless", b"RefusedPath"} <= seen


def test_a_fifo_is_refused_without_waiting_for_a_writer(uploads: Path) -> None:
    os.mkfifo(uploads / "pipe")
    assert "not a regular file" in refusal("pipe")


def test_a_socket_and_a_folder_are_refused(uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(uploads)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "not a regular file" in refusal("socket")
    (uploads / "folder").mkdir()
    assert "not a regular file" in refusal("folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_device_is_refused(uploads: Path) -> None:
    try:
        os.mknod(uploads / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container may not make devices")
    assert "not a regular file" in refusal("null")


def test_a_file_over_the_limit_is_refused(uploads: Path) -> None:
    (uploads / "exact").write_bytes(b"x" * LIMIT)
    (uploads / "large").write_bytes(b"x" * (LIMIT + 1))
    assert len(read("exact")) == LIMIT
    assert "larger than 1,000 bytes" in refusal("large")


def test_names_that_are_hard_for_people_are_easy_for_us(uploads: Path) -> None:
    for name in ("x" * 255, "-rf", "a b'\"$(id)`", "ñandú 李.txt", "CASE", "case", "* ?", "a\\b"):
        (uploads / name).write_bytes(name.encode())
        assert read(name) == read(f"/uploads/{name}") == name.encode()


def test_a_hard_link_is_read_but_never_written_through(uploads: Path, outside: Path) -> None:
    os.link(outside / "secret", uploads / "name")
    write("/uploads/name", b"new", overwrite=True)
    assert read("name") == b"new"
    assert (outside / "secret").read_bytes() == SECRET


def test_a_written_file_is_complete_private_and_in_new_folders(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        write("/processed/a/b/c.txt", b"done")
    finally:
        os.umask(old)
    path = tmp_path / "processed/a/b/c.txt"
    assert path.read_bytes() == b"done"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_nlink == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(locate("a.txt", PROCESSED)) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list((tmp_path / "processed").iterdir()) == []


def test_another_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    write("a.txt", b"first")
    with pytest.raises(RefusedPath, match="overwrite"):
        write("a.txt", b"other")
    assert (tmp_path / "processed/a.txt").read_bytes() == b"first"
    write("a.txt", b"other", overwrite=True)
    assert (tmp_path / "processed/a.txt").read_bytes() == b"other"
    assert leftovers(tmp_path) == []


def test_a_second_attempt_may_write_the_same_again(tmp_path: Path) -> None:
    write("a.txt", b"same" * 500_000)
    write("a.txt", b"same" * 500_000)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_a_fifo_or_a_folder_in_the_way_is_refused(
    tmp_path: Path, outside: Path, overwrite: bool
) -> None:
    processed = tmp_path / "processed"
    (processed / "folder").mkdir(parents=True)
    (processed / "link").symlink_to(outside / "secret")
    os.mkfifo(processed / "pipe")
    for name in ("folder", "link", "pipe"):
        with pytest.raises(RefusedPath):
            write(name, b"x", overwrite=overwrite)
    assert (outside / "secret").read_bytes() == SECRET
    assert leftovers(tmp_path) == []


def test_a_listing_is_sorted_and_follows_no_links(uploads: Path, outside: Path) -> None:
    (uploads / "b").mkdir()
    for name in ("z.md", "a.md", "b/c.md", "x.txt", ".hidden.md"):
        (uploads / name).write_text("x")
    (uploads / "out").symlink_to(outside)
    (outside / "leak.md").write_bytes(SECRET)
    top = locate("/uploads", UPLOADS, folder=True)
    found = [str(place) for place in listing(top, "*.md", recursive=True)]
    assert found == ["/uploads/a.md", "/uploads/z.md", "/uploads/b/c.md"]
    assert [place.name for place in listing(top, "*.md", recursive=False)] == ["a.md", "z.md"]


def test_no_descriptor_is_left_open(uploads: Path) -> None:
    def attempts() -> Iterator[str]:
        yield from ("a.txt", "none", "deep/none", "pipe", "link", "../x", "/uploads/a.txt/x")

    (uploads / "a.txt").write_bytes(b"x")
    (uploads / "link").symlink_to("a.txt")
    os.mkfifo(uploads / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in attempts():
        try:
            with reading(locate(path, UPLOADS), limit=LIMIT):
                pass
        except (RefusedPath, FileNotFoundError):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.lists(st.sampled_from(["..", ".", "", "a", "uploads", "data", "/", "...", "x.y"]), max_size=8))
def test_no_mixture_of_dots_and_slashes_leaves_the_roots(pieces: list[str]) -> None:
    try:
        place = locate("/".join(pieces), UPLOADS, DATA)
    except RefusedPath:
        return
    assert place.root in (UPLOADS, DATA)
    assert place.parts and not {"..", ".", ""} & set(place.parts)
    assert all("/" not in part for part in place.parts)
