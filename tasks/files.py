"""Files: parse tables, copy, and collect front matter, in memory that does not grow with the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import Field

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks.cells import json_value
from tasks.columns import Columns
from tasks.excerpts import Shelf, clip, excerpt
from tasks.front_matter import BrokenFrontMatter, front_matter
from tasks.operations import (
    LARGEST_FILE,
    OPERATIONS,
    SOURCES,
    TARGETS,
    Aggregate,
    Checksum,
    Compress,
    Convert,
    Decompress,
    Source,
    Target,
    Validate,
)
from tasks.payloads import Payload
from tasks.progress import ROWS_BETWEEN_LOOKS, Progress
from tasks.roots import CHUNK, Location, RefusedPath, listing, locate, path_under, reading, writing
from tasks.rows import READERS, Malformed, Rows
from tasks.tables import TableSource, opened

MOST_DOCUMENTS = 10_000
SAMPLE_ROWS, SHOWN_ERRORS = 5, 20


class Output(Payload):
    """Where results go; a different file there is replaced only with ``overwrite``."""

    output_path: Target | None = None
    overwrite: bool = False


class Table(Output):
    """How to read the table, and where to write its rows as JSON lines, if anywhere.

    ``delimiter`` is for CSV; without it, it is guessed from the header. ``json`` is always UTF-8.
    """

    format: Literal["csv", "json", "jsonl", "ndjson", "parquet", "xlsx", "markdown"]
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"
    delimiter: Literal[",", ";", "\t", "|"] | None = None


class Copy(Payload):
    """Where the copy goes; a different file there is replaced only with ``overwrite``."""

    output_path: Target
    overwrite: bool = False


class Documents(Output):
    """Which files of a folder to read: a shell pattern for their names, and whether to go deeper."""

    pattern: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^/\x00]+$")] = "*.md"
    recursive: bool = True


class Parse(Payload):
    """A table to be read."""

    file_path: Source
    operation: Literal["parse"]
    params: Table


class CopyFile(Payload):
    """Any file to be copied."""

    file_path: Source
    operation: Literal["copy"]
    params: Copy


class FrontMatter(Payload):
    """``file_path`` is a Markdown file, a folder, or a folder with a pattern: ``/data/notes/*.md``."""

    file_path: Annotated[str, path_under(*SOURCES, folder=True)]
    operation: Literal["front_matter"]
    params: Documents = Documents()


FileJob = Annotated[
    Parse | CopyFile | FrontMatter | Convert | Validate | Aggregate | Checksum | Compress | Decompress,
    Field(discriminator="operation"),
]


@handler(
    "file_processing",
    payload=FileJob,
    queue="files",
    retry=exponential(base=2, cap=300, attempts=3),
    soft_time_limit=3540,
    time_limit=3600,
)
def process(task: RunningTask, job: Any) -> dict[str, Any]:
    """Parse, check, convert, add up, copy, pack, unpack, or collect front matter.

    Relative paths are under ``/data``, relative outputs under ``/processed``.

    A file that is missing is tried again, since it may still be on its way; a path that may not be
    opened and a file that is not of its format are discarded.
    """
    if isinstance(job, Parse):
        return _parse(task, job)
    if isinstance(job, CopyFile):
        return _copy(task, job)
    if isinstance(job, FrontMatter):
        return _collect(task, job)
    return OPERATIONS[type(job)](task, job)


def _parse(task: RunningTask, job: Parse) -> dict[str, Any]:
    source, params = locate(job.file_path, *SOURCES), job.params
    with reading(source, limit=LARGEST_FILE) as file, _output(params) as output:
        report = _read(_rows(file, params), params, Progress(task, file), output)
    task.progress(100, f"{report['rows']} rows")
    return {"filePath": str(source), "format": params.format, **report, **_written(params)}


def _rows(file: BinaryIO, params: Table) -> Rows:
    if params.format in ("parquet", "xlsx"):
        return opened(file, params.format, TableSource()).rows
    options: dict[str, Any] = {} if params.format == "json" else {"encoding": params.encoding}
    if params.format == "csv":
        options["delimiter"] = params.delimiter
    return READERS[params.format](file, **options)


def _read(rows: Rows, params: Table, progress: Progress, output: BinaryIO | None) -> dict[str, Any]:
    columns, sample = Columns(textual=params.format == "csv"), Shelf(most=SAMPLE_ROWS)
    errors, written = Shelf(most=SHOWN_ERRORS), 0
    for number, row in enumerate(rows):
        if number % ROWS_BETWEEN_LOOKS == 0:
            progress.look(f"{columns.rows} rows")
        if isinstance(row, Malformed):
            errors.add({"line": row.line, "error": clip(row.error)})
            continue
        columns.add(row.values)
        if columns.rows <= SAMPLE_ROWS:
            sample.add(excerpt(json_value(row.values)))
        if output is not None:
            written += _write_line(output, json_value(row.values))
            _check_size(written)
    return {
        "rows": columns.rows,
        "malformed": errors.count,
        "errors": errors.items,
        "columns": [column | {"name": clip(column["name"], 100)} for column in columns.summary()],
        "sample": sample.items,
    }


def _write_line(output: BinaryIO, values: dict[str, Any]) -> int:
    # backslashreplace: a lone surrogate cannot be UTF-8, but its escape is valid JSON.
    text = json.dumps(values, ensure_ascii=False) + "\n"
    return output.write(text.encode("utf-8", "backslashreplace"))


def _check_size(written: int) -> None:
    # JSON repeats the names in every row, so a small file can become a huge one.
    if written > LARGEST_FILE:
        raise Discard(f"the output is larger than {LARGEST_FILE:,} bytes")


def _copy(task: RunningTask, job: CopyFile) -> dict[str, Any]:
    source, target = locate(job.file_path, *SOURCES), locate(job.params.output_path, *TARGETS)
    digest, size = hashlib.sha256(), 0
    with reading(source, limit=LARGEST_FILE) as file, writing(target, overwrite=job.params.overwrite) as copy:
        progress = Progress(task, file)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += copy.write(chunk)
            progress.look(f"{size} bytes")
    task.progress(100, f"{size} bytes")
    return {"outputPath": str(target), "bytes": size, "sha256": digest.hexdigest()}


def _collect(task: RunningTask, job: FrontMatter) -> dict[str, Any]:
    with _output(job.params) as output:
        successful, failed = _read_documents(task, job, output)
    files = successful.count + failed.count
    task.progress(100, f"{files} files")
    return {
        "files": files,
        "successful": successful.items,
        "failed": failed.items,
        "omitted": files - len(successful.items) - len(failed.items),
        **_written(job.params),
    }


def _read_documents(task: RunningTask, job: FrontMatter, output: BinaryIO | None) -> tuple[Shelf, Shelf]:
    successful, failed = Shelf(), Shelf()
    found, alone = _documents(job)
    for number, location in enumerate(found):
        if number % 20 == 0:
            task.progress(number * 100 // len(found), f"{number} of {len(found)} files")
        try:
            document = {"path": str(location), "metadata": front_matter(location)}
        except (BrokenFrontMatter, RefusedPath, OSError) as error:
            if alone:
                raise _alone(location, error) from error
            failed.add({"path": str(location), "error": clip(str(error))})
            continue
        successful.add(document)
        if output is not None:
            _write_line(output, document)
    return successful, failed


def _alone(location: Location, error: Exception) -> Exception:
    """The task's own failure, if its only file cannot be read: broken stays broken, missing may come."""
    return Discard(f"{location}: {error}") if isinstance(error, BrokenFrontMatter) else error


def _documents(job: FrontMatter) -> tuple[list[Location], bool]:
    """The files that the job names, and whether it named one file and not a folder."""
    place, pattern = locate(job.file_path, *SOURCES, folder=True), job.params.pattern
    if place.parts and any(mark in place.name for mark in "*?["):
        pattern, place = place.name, Location(place.root, place.parts[:-1])
        return _limited(listing(place, pattern, recursive=False)), False
    if place.suffix in (".md", ".markdown"):
        return [place], True
    return _limited(listing(place, pattern, recursive=job.params.recursive)), False


def _limited(places: Iterator[Location]) -> list[Location]:
    found = []
    for place in places:
        found.append(place)
        if len(found) > MOST_DOCUMENTS:
            raise Discard(f"there are more than {MOST_DOCUMENTS:,} files")
    return found


def _output(params: Output) -> AbstractContextManager[BinaryIO | None]:
    if params.output_path is None:
        return nullcontext(None)
    return writing(locate(params.output_path, *TARGETS), overwrite=params.overwrite)


def _written(params: Output) -> dict[str, str]:
    if params.output_path is None:
        return {}
    return {"outputPath": str(locate(params.output_path, *TARGETS))}
