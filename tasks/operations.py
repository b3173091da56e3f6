"""Operations of file_processing on tables and archives; none keeps in memory what it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import Field, model_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask
from tasks import archives, cells, tables
from tasks.aggregates import Aggregates, NotANumber
from tasks.columns import Column
from tasks.excerpts import Shelf, clip
from tasks.payloads import Payload
from tasks.progress import Progress
from tasks.roots import (
    CHUNK,
    DATA,
    EXPORTS,
    PROCESSED,
    UPLOADS,
    Location,
    RefusedPath,
    listing,
    locate,
    path_under,
    reading,
    writing,
)
from tasks.tables import Faults, Format, Survey, TableSource

LARGEST_FILE = 16 * 1024**3
SOURCES = (DATA, UPLOADS, PROCESSED, EXPORTS)
# Not /uploads: what arrived from outside stays as it arrived.
TARGETS = (PROCESSED, EXPORTS, DATA)

Source = Annotated[str, path_under(*SOURCES)]
Target = Annotated[str, path_under(*TARGETS)]
Name = Annotated[str, Field(min_length=1, max_length=500)]
PACKED = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bz2", ".xz": "xz", ".zip": "zip"}


class Conversion(TableSource):
    """What to write: ``outputFormat``, or the suffix of ``outputPath``, says the format.

    CSV cells are text; with ``inferTypes`` a column whose cells are all numbers, dates or booleans has that
    type. Cells that a spreadsheet would take for formulas get an apostrophe, unless ``raw``.
    """

    output_path: Target
    output_format: Format | None = None
    output_delimiter: Literal[",", ";", "\t", "|"] | None = None
    overwrite: bool = False
    infer_types: bool = False
    raw: bool = False


class Convert(Payload):
    """A table to be written in another format."""

    file_path: Source
    operation: Literal["convert"]
    params: Conversion


class Rule(Payload):
    """What the cells of a column must be."""

    name: Name
    type: Literal["string", "integer", "number", "boolean", "date", "datetime"] | None = None
    required: bool = False
    min: float | None = None
    max: float | None = None
    max_length: Annotated[int, Field(ge=0)] | None = None
    one_of: Annotated[list[str], Field(max_length=1000)] | None = None


class Rules(TableSource):
    """The rules of the columns; without any, rows are only read. ``onError`` changes nothing here."""

    columns: Annotated[list[Rule], Field(max_length=500)] = []


class Validate(Payload):
    """A table to be checked."""

    file_path: Source
    operation: Literal["validate"]
    params: Rules = Rules()


class Aggregation(TableSource):
    """The columns to add up, for all rows or for each group; ``outputPath`` gets all groups as JSON lines."""

    columns: Annotated[list[Name], Field(max_length=50)] = []
    group_by: Annotated[list[Name], Field(max_length=10)] = []
    output_path: Target | None = None
    overwrite: bool = False


class Aggregate(Payload):
    """A table to be counted and added up."""

    file_path: Source
    operation: Literal["aggregate"]
    params: Aggregation = Aggregation()


class Digest(Payload):
    """Which checksum, and what it has to be, in hexadecimal digits."""

    algorithm: Literal["sha256", "sha512", "sha1", "md5", "blake2b"] = "sha256"
    expected: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32,128}$")] | None = None


class Checksum(Payload):
    """A file to compute a checksum of."""

    file_path: Source
    operation: Literal["checksum"]
    params: Digest = Digest()


class Packing(Payload):
    """Where the packed file goes; ``format``, or its suffix, says how. Only a zip holds a folder."""

    output_path: Target
    format: Literal["gzip", "bz2", "xz", "zip"] | None = None
    level: Annotated[int, Field(ge=1, le=9)] = 6
    overwrite: bool = False


class Compress(Payload):
    """A file, or a folder, to be packed."""

    file_path: Annotated[str, path_under(*SOURCES, folder=True)]
    operation: Literal["compress"]
    params: Packing


class Unpacking(Payload):
    """Where to unpack to: a file, or for a zip a folder. ``maxBytes`` bounds what may come out."""

    output_path: Annotated[str, path_under(*TARGETS, folder=True)]
    format: Literal["gzip", "bz2", "xz", "zip"] | None = None
    max_bytes: Annotated[int, Field(ge=1, le=LARGEST_FILE)] = LARGEST_FILE
    overwrite: bool = False

    @model_validator(mode="after")
    def _names_a_file_for_all_but_a_zip(self) -> Unpacking:
        if self.format not in (None, "zip"):
            locate(self.output_path, *TARGETS)
        return self


class Decompress(Payload):
    """A packed file to be unpacked."""

    file_path: Source
    operation: Literal["decompress"]
    params: Unpacking


def convert(task: RunningTask, job: Convert) -> dict[str, Any]:
    """Write a table in another format."""
    params = job.params
    source, target = locate(job.file_path, *SOURCES), locate(params.output_path, *TARGETS)
    kind = tables.format_of(job.file_path, params.format)
    wanted = tables.format_of(params.output_path, params.output_format)
    with reading(source, limit=LARGEST_FILE) as file, writing(target, overwrite=params.overwrite) as output:
        names, kinds, guesses = _columns(task, file, kind, wanted, params)
        faults, rows = Faults(params.on_error), 0
        progress = Progress(task, file, after=50 if guesses or _needs_survey(kind, wanted) else 0)
        delimiter = params.output_delimiter or ("\t" if target.suffix == ".tsv" else ",")
        made = tables.writer(wanted, output, names, kinds, raw=params.raw, delimiter=delimiter)
        with closing(made) as out:
            for row in faults.good(tables.opened(file, kind, params).rows):
                progress.step(f"{rows} rows")
                values = row.values
                try:
                    if guesses:
                        values = {name: cells.guessed(cell, guesses[name]) for name, cell in values.items()}
                    out.add(values)
                except (ValueError, OverflowError) as error:
                    if isinstance(error, Discard):
                        raise
                    faults.add(row.line, str(error))
                    continue
                rows += 1
                if rows % 1000 == 0 and output.tell() > LARGEST_FILE:
                    raise Discard(f"the output is larger than {LARGEST_FILE:,} bytes")
        size = output.tell()
    task.progress(100, f"{rows} rows")
    result = {"filePath": str(source), "format": kind, "outputPath": str(target), "outputFormat": wanted}
    return {**result, "rows": rows, "bytes": size, **faults.summary()}


def _needs_survey(kind: str, wanted: str) -> bool:
    if not tables.needs_names(wanted) or kind in ("csv", "parquet"):
        return False
    return kind != "xlsx" or wanted == "parquet"


def _columns(
    task: RunningTask, file: BinaryIO, kind: str, wanted: str, params: Conversion
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Names and kinds of the columns to write, and what CSV cells are to be read as."""
    table = tables.opened(file, kind, params)
    quiet, progress = Faults("skip"), Progress(task, file, before=50)
    if kind == "csv" and params.infer_types:
        guesses = tables.inferred(table, quiet, progress.step)
        guesses = {name: guesses.get(name, "string") for name in table.names or []}
        # Times with and without a zone in one column would be no one type.
        kinds = {name: "string" if kind == "datetime" else kind for name, kind in guesses.items()}
        return table.names or [], kinds, kinds
    if not _needs_survey(kind, wanted):
        return table.names or [], table.kinds, {}
    survey = Survey()
    for row in quiet.good(table.rows):
        survey.add(row.values)
        progress.step()
    names, kinds = survey.result()
    return (table.names if table.names is not None else names), kinds, {}


def validate(task: RunningTask, job: Validate) -> dict[str, Any]:
    """Check every row of a table against the rules of its columns."""
    source, params = locate(job.file_path, *SOURCES), job.params
    kind = tables.format_of(job.file_path, params.format)
    faults, rows, bad = Faults("skip"), 0, 0
    with reading(source, limit=LARGEST_FILE) as file:
        table, progress = tables.opened(file, kind, params), Progress(task, file)
        _check_columns(table.names, [rule.name for rule in params.columns])
        for row in faults.good(table.rows):
            progress.step(f"{rows} rows")
            rows += 1
            wrong = [(rule, error) for rule in params.columns if (error := _broken(rule, row.values, kind))]
            bad += bool(wrong)
            for rule, error in wrong:
                faults.add(row.line, error, rule.name)
    task.progress(100, f"{rows} rows")
    valid = not faults.count
    return {"filePath": str(source), "format": kind, "valid": valid, "rows": rows, "badRows": bad,
            "faults": faults.count, "errors": faults.summary()["errors"]}  # fmt: skip


def _check_columns(there: list[str] | None, wanted: list[str]) -> None:
    missing = [name for name in wanted if there is not None and name not in there]
    if missing:
        known = ", ".join(there or [])
        raise Discard(f"there is no column {clip(missing[0], 100)!r}; there are {clip(known, 500)}")


def _broken(rule: Rule, values: dict[str, Any], kind: str) -> str:  # noqa: PLR0911 - one for each rule
    """What is wrong with this row's cell, or nothing."""
    value = values.get(rule.name)
    if value is None or value == "":
        return "it is empty" if rule.required else ""
    found, text = Column.kind_of(value, textual=kind == "csv"), cells.text(value)
    if rule.type is not None and rule.type not in ("string", found):
        if not (rule.type == "number" and found == "integer"):
            return f"{clip(text, 60)!r} is {found}, not {rule.type}"
    elif rule.type == "string" and kind != "csv" and not isinstance(value, str):
        return f"{clip(text, 60)!r} is {found}, not string"
    if (rule.min is not None or rule.max is not None) and found in ("integer", "number"):
        number = float(value)
        if rule.min is not None and number < rule.min:
            return f"{clip(text, 60)} is below {rule.min:g}"
        if rule.max is not None and number > rule.max:
            return f"{clip(text, 60)} is above {rule.max:g}"
    if rule.max_length is not None and len(text) > rule.max_length:
        return f"it has {len(text)} characters, more than {rule.max_length}"
    if rule.one_of is not None and text not in rule.one_of:
        return f"{clip(text, 60)!r} is none of the allowed values"
    return ""


def aggregate(task: RunningTask, job: Aggregate) -> dict[str, Any]:
    """Count rows and add up columns."""
    source, params = locate(job.file_path, *SOURCES), job.params
    kind = tables.format_of(job.file_path, params.format)
    groups, faults, rows = Aggregates(params.group_by, params.columns), Faults(params.on_error), 0
    with reading(source, limit=LARGEST_FILE) as file:
        table, progress = tables.opened(file, kind, params), Progress(task, file)
        _check_columns(table.names, [*params.columns, *params.group_by])
        for row in faults.good(table.rows):
            progress.step(f"{rows} rows")
            try:
                groups.add(row.values)
            except NotANumber as error:
                faults.add(row.line, str(error), error.column)
                continue
            rows += 1
    shown, written = Shelf(), {}
    for group in groups:
        shown.add(group)
    if params.output_path is not None:
        target = locate(params.output_path, *TARGETS)
        with writing(target, overwrite=params.overwrite) as output:
            lines = tables.writer("ndjson", output, [], {}, raw=True)
            for group in groups:
                lines.add(group)
        written = {"outputPath": str(target)}
    task.progress(100, f"{rows} rows")
    result = {"filePath": str(source), "format": kind, "rows": rows, "groupCount": shown.count}
    return {**result, "groups": shown.items, **faults.summary(), **written}


def checksum(task: RunningTask, job: Checksum) -> dict[str, Any]:
    """Compute a checksum, and compare it with what is expected."""
    source, params = locate(job.file_path, *SOURCES), job.params
    digest, size = hashlib.new(params.algorithm, usedforsecurity=False), 0
    with reading(source, limit=LARGEST_FILE) as file:
        progress = Progress(task, file)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            progress.look(f"{size} bytes")
    found = digest.hexdigest()
    if params.expected is not None and params.expected.lower() != found:
        raise Discard(f"the {params.algorithm} of {source} is {found}, not {params.expected.lower()}")
    task.progress(100, f"{size} bytes")
    return {"filePath": str(source), "algorithm": params.algorithm, "checksum": found, "bytes": size}


def compress(task: RunningTask, job: Compress) -> dict[str, Any]:
    """Pack a file, or a folder into a zip. Links and hidden files in the folder are left out."""
    params = job.params
    source, target = locate(job.file_path, *SOURCES, folder=True), locate(params.output_path, *TARGETS)
    kind = _packing(params.output_path, params.format)
    with writing(target, overwrite=params.overwrite) as output:
        if kind == "zip":
            entries = _entries(task, source)
            size = archives.pack_zip(output, entries, params.level, lambda: _check_size(output))
        else:
            size = _pack(task, source, output, kind, params.level)
        packed = output.seek(0, 2)
    task.progress(100, f"{size} bytes")
    return {"filePath": str(source), "outputPath": str(target), "format": kind, "bytes": size,
            "packedBytes": packed}  # fmt: skip


def _pack(task: RunningTask, source: Location, output: BinaryIO, kind: str, level: int) -> int:
    size = 0
    with reading(source, limit=LARGEST_FILE) as file, archives.packer(kind, output, level) as packed:
        progress = Progress(task, file)
        while chunk := file.read(CHUNK):
            size += packed.write(chunk)
            progress.look(f"{size} bytes")
    return size


def _entries(task: RunningTask, source: Location) -> Iterator[tuple[str, BinaryIO]]:
    places = _contained(source)
    for number, (name, place) in enumerate(places):
        if number % 20 == 0:
            task.progress(number * 99 // len(places), f"{number} of {len(places)} files")
        with reading(place, limit=LARGEST_FILE) as file:
            yield name, file


def _contained(source: Location) -> list[tuple[str, Location]]:
    """The names and places of a folder's files, or of the one file that this is."""
    try:
        found = []
        for place in listing(source, "*", recursive=True):
            found.append(("/".join(place.parts[len(source.parts) :]), place))
            if len(found) > archives.MOST_ENTRIES:
                raise Discard(f"there are more than {archives.MOST_ENTRIES:,} files")
    except RefusedPath:
        if not source.parts:
            raise
        return [(source.name, source)]
    return found


def _check_size(output: BinaryIO) -> None:
    if output.tell() > LARGEST_FILE:
        raise Discard(f"the output is larger than {LARGEST_FILE:,} bytes")


def decompress(task: RunningTask, job: Decompress) -> dict[str, Any]:
    """Unpack a file. Of a zip with an entry that is refused nothing is unpacked; each file appears whole."""
    params = job.params
    source, kind = locate(job.file_path, *SOURCES), _packing(job.file_path, params.format)
    target = locate(params.output_path, *TARGETS, folder=kind == "zip")
    with reading(source, limit=LARGEST_FILE) as file:
        progress = Progress(task, file)
        if kind == "zip":
            files, size = _unzip(file, target, params, progress.look)
        else:
            files, size = 1, 0
            with writing(target, overwrite=params.overwrite) as output:
                for piece in archives.unpacked(kind, file, largest=params.max_bytes):
                    size += output.write(piece)
                    progress.look(f"{size} bytes")
    task.progress(100, f"{size} bytes")
    return {"filePath": str(source), "outputPath": str(target), "format": kind, "files": files, "bytes": size}


def _unzip(
    file: BinaryIO, folder: Location, params: Unpacking, look: Callable[[str], None]
) -> tuple[int, int]:
    archive = archives.checked_zip(file, largest=params.max_bytes)
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    places = [_inside(folder, entry.filename, entry.external_attr) for entry in entries]
    if len(set(places)) < len(places):
        raise Discard("two entries of the archive have the same name")
    size = 0
    for entry, place in zip(entries, places, strict=True):
        try:
            with archive.open(entry) as packed, writing(place, overwrite=params.overwrite) as output:
                while piece := packed.read(CHUNK):
                    size += output.write(piece)
                    look(f"{size} bytes")
        except archives.DAMAGE as error:
            if isinstance(error, Discard) or (isinstance(error, OSError) and error.errno):
                raise
            raise Discard(f"{clip(entry.filename)!r} cannot be unpacked: {clip(str(error))}") from None
    return len(entries), size


def _inside(folder: Location, name: str, attributes: int) -> Location:
    """The place of an entry; the name is a stranger's, and must lead nowhere else."""
    parts = PurePosixPath(name).parts
    if "\\" in name or name.startswith("/") or ".." in parts or not parts or ":" in parts[0]:
        raise Discard(f"the archive's entry {clip(name)!r} leads out of its folder")
    if (attributes >> 16) & 0o170000 not in (0, 0o100000):
        raise Discard(f"the archive's entry {clip(name)!r} is not a regular file")
    return locate("/".join((str(folder).rstrip("/"), *parts)), folder.root)


def _packing(path: str, given: str | None) -> str:
    found = given or PACKED.get(PurePosixPath(path).suffix.lower())
    if found is None:
        raise Discard(f"the suffix of {path!r} is none of {', '.join(PACKED)}; say the format")
    return found


OPERATIONS: dict[type[Payload], Callable[[RunningTask, Any], dict[str, Any]]] = {
    Convert: convert,
    Validate: validate,
    Aggregate: aggregate,
    Checksum: checksum,
    Compress: compress,
    Decompress: decompress,
}
