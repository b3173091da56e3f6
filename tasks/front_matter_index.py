"""The front matter index: a row for each Markdown file of a tree, kept as the files are."""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from enum import Enum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks.excerpts import Shelf, clip
from tasks.front_matter import LARGEST_FILE, BrokenFrontMatter, parsed
from tasks.globs import check_glob, matches
from tasks.operations import SOURCES
from tasks.payloads import Payload
from tasks.roots import Location, RefusedPath, locate, path_under, reading, surveying

MOST_FILES = 100_000
LONGEST_NAME = 1024  # bytes of a path: an index of PostgreSQL takes no more than some 2,700
LARGEST_METADATA = 256 * 1024  # characters of JSON for one file, and for all files of a run:
LARGEST_TREE = 256 * 1024 * 1024
# The first half of the advisory lock under which the rows of a root are written.
INDEX_LOCK = 0x43505A49
# Seconds after a change in which another one may get the same time from the kernel.
YOUNG = 2.0
PROCESSES = 4
# With fewer files than this, starting processes takes longer than reading.
FEW = 64
BATCH = 8
AT_ONCE = 1000  # rows of a statement
SILENCE = 300.0  # seconds without a file being read: a process has died
PR_SET_PDEATHSIG = 1  # prctl(2)


class Tree(Payload):
    """A folder, which of its files to index, and below which of its ``paths`` to look, if not everywhere.

    Paths are relative to the folder; each is a file or a folder, and need not be there any more.
    """

    directory: Annotated[str, path_under(*SOURCES, folder=True)]
    pattern: Annotated[
        str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$"), AfterValidator(check_glob)
    ] = "**/*.md"
    paths: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _has_paths_below_it(self) -> Tree:
        for path in self.paths or ():
            locate(path, self.place.root, folder=True)
            if path.startswith("/"):
                raise ValueError(f"paths: {path!r} must be relative to the directory")
        return self

    @property
    def place(self) -> Location:
        """The folder."""
        return locate(self.directory, *SOURCES, folder=True)


class Trouble(Enum):
    """Why a file was not read: it is not fit for the index, it could not be opened now, or it is gone."""

    REFUSED = 1
    UNREADABLE = 2
    GONE = 3


@dataclass(frozen=True)
class Reading:
    """What was read of one file. ``metadata`` is None if the digest is the one that was known already."""

    path: str
    stamp: str = ""
    digest: str = ""
    size: int = 0
    modified: float = 0.0
    is_young: bool = False
    metadata: dict[str, Any] | None = None
    trouble: Trouble | None = None
    error: str = ""


@dataclass
class Survey:
    """The files that a run is about, with their stamps, and the folders of which nothing is known."""

    files: dict[str, tuple[Location, str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def hides(self, path: str) -> bool:
        """Whether this path lies in a folder that could not be read."""
        return any(path.startswith(folder.rstrip("/") + "/") for folder in self.unreadable)


@handler(
    "frontmatter_index",
    payload=Tree,
    queue="files",
    retry=exponential(base=2, cap=300, attempts=3),
    soft_time_limit=1740,
    time_limit=1800,
)
def index(task: RunningTask, tree: Tree) -> dict[str, Any]:
    """Bring the rows of a tree up to date: read what has changed, in several processes, and write it at once.

    A file that cannot be indexed is told beside the others and has no row; one that could not be read at this
    time keeps the row it has.
    """
    scope = _scope(tree)
    survey = _survey(tree.place, scope)
    known = {row.path: row for row in _rows(tree.place, scope)}
    changed = []
    for path, (location, stamp) in survey.files.items():
        row = known.get(path)
        if row is None or row.stamp != stamp:
            changed.append((location, row.digest if row else ""))
    readings: dict[str, Reading] = {}
    room = LARGEST_TREE
    with closing(_read_all(changed)) as found:
        for number, read in enumerate(found, 1):
            readings[read.path] = read
            room -= len(_json(read.metadata))
            if room < 0:
                raise Discard(f"the front matter of the tree is larger than {LARGEST_TREE:,} characters")
            if number % 20 == 0 or number == len(changed):
                task.progress(5 + 85 * number // len(changed), f"{number} of {len(changed)} changed files")
    result = _write(tree.place, scope, readings)
    task.progress(100, f"{result['indexed']} indexed, {result['unchanged']} unchanged")
    return result


def _scope(tree: Tree) -> Callable[[tuple[str, ...]], bool]:
    """Whether the run is about a file, by the names that lead to it from the root."""
    top = tree.place.parts
    wanted = [locate(path, tree.place.root, folder=True).parts for path in tree.paths or ("./",)]

    def is_meant(parts: tuple[str, ...]) -> bool:
        below = parts[len(top) :]
        return (
            parts[: len(top)] == top
            and any(below[: len(start)] == start for start in wanted)
            and matches(tree.pattern, below)
        )

    return is_meant


def _survey(place: Location, is_meant: Callable[[tuple[str, ...]], bool]) -> Survey:
    survey = Survey()
    if not place.root.folder.is_dir():
        # Not a tree that was deleted, but a disk that is not there.
        raise FileNotFoundError(f"the root /{place.root.prefix} is not there")
    try:
        found = surveying(
            place, on_error=lambda folder, error: survey.unreadable.update({str(folder): str(error)})
        )
        for location, status in found:
            if is_meant(location.parts):
                survey.files[str(location)] = location, _stamp(status)
            if len(survey.files) > MOST_FILES:
                raise Discard(f"there are more than {MOST_FILES:,} files")
    except FileNotFoundError:
        survey.files.clear()
    return survey


def _stamp(status: os.stat_result) -> str:
    """What differs if the file does, unless it was changed twice within a tick of the kernel's clock."""
    return f"{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_size}:{status.st_ino}"


def _rows(place: Location, is_meant: Callable[[tuple[str, ...]], bool]) -> Iterator[Any]:
    """The rows that the run is about, with no more of them than is compared."""
    from tasks.models import IndexedFile

    rows = IndexedFile.objects.filter(path__startswith=f"{place}/").only("path", "stamp", "digest").order_by()
    for row in rows:
        if is_meant(tuple(row.path.split("/")[2:])):
            yield row


# --- Reading ------------------------------------------------------------------------------------------


def _read_all(files: list[tuple[Location, str]]) -> Generator[Reading, None, None]:
    """Read files, each given with the digest that is known of it."""
    processes = min(PROCESSES, len(os.sched_getaffinity(0)))
    if len(files) < FEW or processes < 2:
        yield from map(_read, files)
        return
    # Whatever is raised here, such as a cancel, the pool ends with the block.
    with _parenthood(), multiprocessing.get_context("fork").Pool(processes, _begin, (os.getpid(),)) as pool:
        batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        found = pool.imap_unordered(_read_batch, batches)
        for _ in batches:
            yield from found.next(SILENCE)


@contextmanager
def _parenthood() -> Iterator[None]:
    """A worker's child is a daemon, which may not have children; ours end with it, as ``_begin`` sees to."""
    process = multiprocessing.current_process()
    was_daemon, process.daemon = process.daemon, False
    try:
        yield
    finally:
        process.daemon = was_daemon


def _begin(parent: int) -> None:
    """In a new process: none of the worker's signal handlers, and no life without it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _read_batch(files: list[tuple[Location, str]]) -> list[Reading]:
    return [_read(file) for file in files]


def _read(file: tuple[Location, str]) -> Reading:
    location, known = file
    path = str(location)
    try:
        locate(path, location.root)
        if len(path.encode()) > LONGEST_NAME:
            raise RefusedPath(path, f"it has more than {LONGEST_NAME:,} bytes")
        return _read_contents(location, known)
    except RefusedPath as error:
        return Reading(path, trouble=Trouble.REFUSED, error=str(error))
    except FileNotFoundError:
        return Reading(path, trouble=Trouble.GONE)
    except OSError as error:
        return Reading(path, trouble=Trouble.UNREADABLE, error=str(error))


def _read_contents(location: Location, known: str) -> Reading:
    now = time.time()
    with reading(location, limit=LARGEST_FILE) as file:
        # Before the contents, so that a change in between is seen as one.
        status = os.fstat(file.fileno())
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise RefusedPath(location, f"it grew beyond {LARGEST_FILE:,} bytes while it was read")
    read = Reading(
        str(location),
        stamp=_stamp(status),
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
        modified=status.st_mtime,
        is_young=now - status.st_ctime < YOUNG,
    )
    if read.digest == known:
        return read
    try:
        metadata = parsed(data)
        if len(_json(metadata)) > LARGEST_METADATA:
            raise BrokenFrontMatter(f"the front matter is longer than {LARGEST_METADATA:,} characters")
    except BrokenFrontMatter as error:
        return replace(read, trouble=Trouble.REFUSED, error=str(error))
    return replace(read, metadata=metadata)


def _json(metadata: dict[str, Any] | None) -> str:
    return json.dumps(metadata, ensure_ascii=False)


# --- Writing ------------------------------------------------------------------------------------------


def _write(
    place: Location, is_meant: Callable[[tuple[str, ...]], bool], readings: dict[str, Reading]
) -> dict[str, Any]:
    """Write what is there now, one run of a root after the other.

    The tree is listed again when the lock is held, and what does not look as it did when it was read is read
    again: so whoever writes last has looked last, and a run that was overtaken changes nothing back.
    """
    from django.db import connection, transaction

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [INDEX_LOCK, place.root.prefix])
        survey = _survey(place, is_meant)
        rows = {row.path: row for row in _rows(place, is_meant)}
        stale = []
        for path, (location, stamp) in survey.files.items():
            row, read = rows.get(path), readings.get(path)
            if row is not None and row.stamp == stamp:
                readings.pop(path, None)
            elif read is None or not _still_holds(read, stamp, row):
                whole = read is not None and read.metadata is not None
                stale.append((location, read.digest if read and whole else row.digest if row else ""))
        for read in _read_all(stale):
            earlier = readings.get(read.path)
            is_same = earlier is not None and earlier.digest == read.digest and read.metadata is None
            readings[read.path] = replace(read, metadata=earlier.metadata) if earlier and is_same else read
        return _store(place, survey, rows, readings)


def _still_holds(read: Reading, stamp: str, row: Any) -> bool:
    if read.is_young or read.stamp != stamp:
        return False
    return read.trouble is not None or read.metadata is not None or (row and row.digest == read.digest)


def _store(
    place: Location, survey: Survey, rows: dict[str, Any], readings: dict[str, Reading]
) -> dict[str, Any]:
    from tasks.models import IndexedFile

    failed, indexed, same, unchanged = Shelf(), [], [], 0
    gone = [row.pk for path, row in rows.items() if path not in survey.files and not survey.hides(path)]
    for folder, error in survey.unreadable.items():
        failed.add({"path": clip(folder, LONGEST_NAME), "error": clip(error)})
    for path in sorted(survey.files):
        row, read = rows.get(path), readings.get(path)
        if read is None:
            unchanged += 1
        elif read.trouble is None and row is not None and row.digest == read.digest:
            unchanged += 1
            row.stamp, row.modified = _kept_stamp(read), _modified(read)
            same.append(row)
        elif read.trouble is None:
            indexed.append(IndexedFile(root=place.root.prefix, **_columns(read)))
        else:
            if read.trouble is not Trouble.GONE:
                failed.add({"path": clip(path, LONGEST_NAME), "error": clip(read.error)})
            if row is not None and read.trouble is not Trouble.UNREADABLE:
                gone.append(row.pk)
    for start in range(0, len(gone), AT_ONCE):
        IndexedFile.objects.filter(pk__in=gone[start : start + AT_ONCE]).delete()
    IndexedFile.objects.bulk_update(same, ["stamp", "modified"], batch_size=AT_ONCE)
    names = [column.name for column in IndexedFile._meta.concrete_fields if column.name not in ("id", "path")]
    IndexedFile.objects.bulk_create(
        indexed, batch_size=AT_ONCE, update_conflicts=True, unique_fields=["path"], update_fields=names
    )
    return {
        "indexed": len(indexed),
        "unchanged": unchanged,
        "removed": len(gone),
        "failed": failed.items,
        "omitted": failed.count - len(failed.items),
    }


def _kept_stamp(read: Reading) -> str:
    return "" if read.is_young else read.stamp


def _modified(read: Reading) -> datetime:
    # A file may claim any time; the years 1970 to 9999 are those that a row can hold.
    return datetime.fromtimestamp(min(max(read.modified, 0), 253_402_300_799), UTC)


def _columns(read: Reading) -> dict[str, Any]:
    metadata = read.metadata or {}
    title = metadata.get("title")
    return {
        "path": read.path,
        "digest": read.digest,
        "size": read.size,
        "modified": _modified(read),
        "stamp": _kept_stamp(read),
        "title": "" if title is None or isinstance(title, dict | list) else clip(str(title), 500),
        "date": _date(metadata.get("date")),
        "tags": _tags(metadata.get("tags")),
        "front_matter": metadata,
    }


def _date(value: Any) -> date | None:
    try:
        return datetime.fromisoformat(value).date()
    except (TypeError, ValueError):
        return None


def _tags(value: Any) -> list[str]:
    """A list of tags, or text with commas between them; none for anything else."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        return []
    texts = [
        clip(str(each).strip()) for each in value if each is not None and not isinstance(each, dict | list)
    ]
    return list(dict.fromkeys(text for text in texts if text))
