"""Tables: rows of any format as one thing to read, to survey and to write."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, BinaryIO, Literal, Protocol

from pydantic import Field

from capataz.errors import Discard
from tasks import cells
from tasks.columns import Columns
from tasks.excerpts import Shelf, clip
from tasks.payloads import Payload
from tasks.rows import MOST_COLUMNS, READERS, Malformed, Row, Rows, csv_names

Format = Literal["csv", "json", "ndjson", "jsonl", "parquet", "xlsx"]
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
SHOWN_FAULTS = 20
_INT64 = range(-(2**63), 2**63)


class TableSource(Payload):
    """How to read a table. Without ``format`` the suffix of the file says it.

    ``encoding`` is for CSV and JSON lines, ``delimiter`` for CSV, ``sheet`` for XLSX. A row that cannot be
    read, or does not fit, ends the task (``fail``) or is left out and counted (``skip``).
    """

    format: Format | None = None
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"
    delimiter: Literal[",", ";", "\t", "|"] | None = None
    sheet: Annotated[str, Field(max_length=31)] | None = None
    on_error: Literal["fail", "skip"] = "fail"


def format_of(path: str, given: str | None) -> str:
    """The format that was given, or that the path's suffix names. Raises Discard if neither does."""
    found = given or SUFFIXES.get(PurePosixPath(path).suffix.lower())
    if found is None:
        known = ", ".join(SUFFIXES)
        raise Discard(f"the suffix of {path!r} names no format; say which, or use one of {known}")
    return "ndjson" if found == "jsonl" else found


@dataclass
class Table:
    """An open table: its rows, and the names and kinds of its columns as far as the format says them."""

    names: list[str] | None
    kinds: dict[str, str]
    rows: Rows


def opened(file: BinaryIO, kind: str, how: TableSource) -> Table:
    """The table that a file holds, from its start."""
    file.seek(0)
    if kind == "parquet":
        from tasks.parquet import parquet_table

        return Table(*parquet_table(file))
    if kind == "xlsx":
        from tasks.spreadsheets import xlsx_table

        names, rows = xlsx_table(file, how.sheet)
        return Table(names, {}, rows)
    if kind == "csv":
        options: dict[str, Any] = {"encoding": how.encoding, "delimiter": how.delimiter}
        names = csv_names(file, **options)
        return Table(names, dict.fromkeys(names, "string"), READERS["csv"](file, **options))
    if kind == "json":
        return Table(None, {}, READERS["json"](file))
    return Table(None, {}, READERS["jsonl"](file, encoding=how.encoding))


class Faults:
    """What was wrong with which rows: ends the task at the first, or counts them and keeps a few."""

    def __init__(self, on_error: str) -> None:
        self._fails = on_error == "fail"
        self._shelf = Shelf(most=SHOWN_FAULTS)

    def add(self, line: int, error: str, column: str | None = None) -> None:
        """Note a fault. Raises Discard if faults are not to be skipped."""
        place = f"row {line}" if column is None else f"row {line}, column {clip(column, 100)!r}"
        if self._fails:
            raise Discard(f"{place}: {clip(error)}")
        fault = {"line": line, "error": clip(error)}
        self._shelf.add(fault if column is None else {**fault, "column": clip(column, 100)})

    def good(self, rows: Rows) -> Iterator[Row]:
        """The rows that could be read."""
        for row in rows:
            if isinstance(row, Malformed):
                self.add(row.line, row.error)
            else:
                yield row

    @property
    def count(self) -> int:
        """How many rows were left out."""
        return self._shelf.count

    def summary(self) -> dict[str, Any]:
        """How many, and the first of them."""
        return {"malformed": self._shelf.count, "errors": self._shelf.items}


class Survey:
    """The names and kinds of all columns, learned from every row before the first one is written."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def add(self, values: dict[str, Any]) -> None:
        """Look at a row. Raises Discard beyond 500 columns."""
        for name, value in values.items():
            kinds = self._seen.setdefault(name, set())
            if value is not None:
                kinds.add(_kind(value))
        if len(self._seen) > MOST_COLUMNS:
            raise Discard(f"the table has more than {MOST_COLUMNS} columns")

    def result(self) -> tuple[list[str], dict[str, str]]:
        """The names in the order in which they were met, and the one kind of each column; mixed is text."""
        return list(self._seen), {name: _one(kinds) for name, kinds in self._seen.items()}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        if abs(value) <= 2**53:
            return "integer"
        return "long" if value in _INT64 else "string"
    if isinstance(value, float):
        return "number"
    if isinstance(value, datetime):
        return "moment" if value.tzinfo is not None else "datetime"
    return "date" if isinstance(value, date) else "string"


def _one(kinds: set[str]) -> str:
    if kinds == {"integer", "number"}:
        return "number"
    if kinds and kinds <= {"integer", "long"}:
        return "integer"
    return next(iter(kinds)) if len(kinds) == 1 else "string"


def inferred(table: Table, faults: Faults, look: Callable[[], None]) -> dict[str, str]:
    """What all cells of each column of a CSV file are; text that only looks like a number stays text."""
    columns = Columns(textual=True)
    for row in faults.good(table.rows):
        columns.add(row.values)
        look()
    return {column["name"]: column["type"] for column in columns.summary()}


class Writer(Protocol):
    """Writes rows in one format. ``add`` raises ValueError for a row that the format cannot hold."""

    def add(self, values: dict[str, Any]) -> None:
        """Write a row."""

    def close(self) -> None:
        """Write what ends the file."""


def needs_names(kind: str) -> bool:
    """Whether this format has to know all columns before its first row."""
    return kind in ("csv", "xlsx", "parquet")


def writer(
    kind: str, file: BinaryIO, names: list[str], kinds: dict[str, str], *, raw: bool, delimiter: str = ","
) -> Writer:
    """A writer of this format. ``raw`` leaves cells that look like formulas as they are."""
    if kind == "csv":
        return _CsvWriter(file, names, raw=raw, delimiter=delimiter)
    if kind == "xlsx":
        from tasks.spreadsheets import XlsxWriter

        return XlsxWriter(file, names, raw=raw)
    if kind == "parquet":
        from tasks.parquet import ParquetWriter

        return ParquetWriter(file, names, kinds)
    return _JsonWriter(file, array=kind == "json")


class _CsvWriter:
    def __init__(self, file: BinaryIO, names: list[str], *, raw: bool, delimiter: str) -> None:
        self._file, self._names, self._raw = file, names, raw
        self._line = io.StringIO()
        # Everything is quoted, so that no reader takes a cell for something else than it is.
        self._csv = csv.writer(self._line, delimiter=delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
        if names:
            self._write([name if raw else cells.neutral(name) for name in names])

    def add(self, values: dict[str, Any]) -> None:
        row = [values.get(name) for name in self._names]
        texts = [cells.text(value) for value in row]
        self._write(texts if self._raw else [cells.neutral(text) for text in texts])

    def close(self) -> None:
        pass

    def _write(self, texts: list[str]) -> None:
        if any("\0" in text for text in texts):
            raise ValueError("a cell of CSV cannot hold a NUL")
        self._line.seek(0)
        self._line.truncate()
        self._csv.writerow(texts)
        self._file.write(self._line.getvalue().encode())


class _JsonWriter:
    def __init__(self, file: BinaryIO, *, array: bool) -> None:
        self._file, self._array, self._rows = file, array, 0
        if array:
            file.write(b"[")

    def add(self, values: dict[str, Any]) -> None:
        text = json.dumps(cells.json_value(values), ensure_ascii=False, allow_nan=False)
        # backslashreplace: a lone surrogate cannot be UTF-8, but its escape is valid JSON.
        line = text.encode("utf-8", "backslashreplace")
        if self._array:
            line = (b",\n" if self._rows else b"\n") + line
        self._file.write(line if self._array else line + b"\n")
        self._rows += 1

    def close(self) -> None:
        if self._array:
            self._file.write(b"\n]\n")
