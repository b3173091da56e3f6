"""Rows: what a table file holds, read one at a time, so that memory does not grow with the file."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any, BinaryIO

from capataz.errors import Discard

LONGEST_ROW = 1024 * 1024  # bytes, or characters of a JSON value: what is held in memory at once
MOST_COLUMNS = 500
# Python reads deeper JSON than it can write.
DEEPEST_ROW = 100
DELIMITERS = ",;\t|"
PIECE = 64 * 1024

# Larger integers are data for nobody and make conversion slow.
LONGEST_INTEGER = 30


@dataclass(frozen=True)
class Row:
    """One row and the line that it starts in, counted from 1."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A row that could not be read, and why."""

    line: int
    error: str


Rows = Iterator[Row | Malformed]


class BadLine(ValueError):
    """A line that is too long or is not text; the lines after it can still be read."""


class Lines:
    """The lines of a file as text, each with its line end; ``number`` is the latest one's, from 1.

    A class and not a generator, because a generator ends with its first error.
    """

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.number = 0
        self._file = file
        self._encoding = encoding

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(LONGEST_ROW + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        if len(raw) > LONGEST_ROW:
            self._skip_to_the_end_of(raw)
            raise BadLine(f"the line is longer than {LONGEST_ROW:,} bytes")
        if self.number == 1:
            raw = _without_byte_order_mark(raw)
        if b"\0" in raw:
            raise BadLine("the line contains a NUL byte")
        try:
            return raw.decode(self._encoding)
        except UnicodeDecodeError as error:
            raise BadLine(f"byte {error.start + 1} of the line is not {self._encoding}") from None

    def _skip_to_the_end_of(self, raw: bytes) -> None:
        while raw and not raw.endswith(b"\n"):
            raw = self._file.readline(LONGEST_ROW)


def csv_rows(file: BinaryIO, *, encoding: str = "utf-8", delimiter: str | None = None) -> Rows:
    """The rows of a CSV file with a header; cells stay text. Blank lines are skipped.

    Without ``delimiter``, it is the most frequent of comma, semicolon, tab and bar in the header. A
    column without a name is called ``column_3``, a second ``name`` becomes ``name_2``.

    Raises Discard if the header cannot be read or names more than 500 columns.
    """
    lines = Lines(file, encoding)
    reader = csv.reader(lines, delimiter=delimiter or _likely_delimiter(file), strict=True)
    try:
        names = distinct(next((cells for cells in reader if cells), []))
    except (csv.Error, BadLine) as error:
        raise Discard(f"the header cannot be read: {error}") from None
    while True:
        line = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, BadLine) as error:
            yield Malformed(line, str(error))
            continue
        if not cells:
            continue
        if len(cells) == len(names):
            yield Row(line, dict(zip(names, cells, strict=True)))
        else:
            yield Malformed(line, f"{len(cells)} fields instead of {len(names)}")


def csv_names(file: BinaryIO, *, encoding: str = "utf-8", delimiter: str | None = None) -> list[str]:
    """The names in the header of a CSV file, from its start; the file is at its start again afterwards."""
    reader = csv.reader(Lines(file, encoding), delimiter=delimiter or _likely_delimiter(file), strict=True)
    try:
        return distinct(next((cells for cells in reader if cells), []))
    except (csv.Error, BadLine) as error:
        raise Discard(f"the header cannot be read: {error}") from None
    finally:
        file.seek(0)


def jsonl_rows(file: BinaryIO, *, encoding: str = "utf-8") -> Rows:
    """The objects of a file with one JSON object a line. Blank lines are skipped."""
    lines = Lines(file, encoding)
    while True:
        try:
            text = next(lines)
            if text.strip():
                yield _row(lines.number, _DECODER.decode(text))
        except StopIteration:
            return
        except (ValueError, RecursionError) as error:
            yield Malformed(lines.number, str(error))


def json_rows(file: BinaryIO) -> Rows:
    """The objects of a UTF-8 JSON array, or the one object that the file holds.

    Raises Discard where the file is not JSON: unlike a line, a broken array has no place to go on from.
    """
    text = _JsonText(file)
    if text.peek() != "[":
        yield _row(text.line, text.value())
    else:
        yield from _items(text)
    if text.peek():
        raise text.fault("there is something after its end")


def markdown_rows(file: BinaryIO, *, encoding: str = "utf-8") -> Rows:
    """The sections of a Markdown file: level and title of the heading, its line, the words below it.

    Text before the first heading is a section of level 0. Front matter and fenced code are not searched
    for headings; front matter is not counted either.
    """
    section = _section(0, "", 1)
    lines, fence, in_front_matter = Lines(file, encoding), "", False
    while True:
        try:
            text = next(lines).rstrip()
        except StopIteration:
            break
        except BadLine as error:
            yield Malformed(lines.number, str(error))
            continue
        if text == "---" and (lines.number == 1 or in_front_matter):
            in_front_matter = not in_front_matter
        elif in_front_matter:
            continue
        elif heading := not fence and _HEADING.fullmatch(text):
            if _is_worth_a_row(section):
                yield Row(section["line"], section)
            section = _section(len(heading[1]), _title(heading[2]), lines.number)
        else:
            fence = _fence_after(text, fence)
            section["words"] += len(text.split())
    if _is_worth_a_row(section):
        yield Row(section["line"], section)


READERS: dict[str, Callable[..., Rows]] = {
    "csv": csv_rows,
    "json": json_rows,
    "jsonl": jsonl_rows,
    "ndjson": jsonl_rows,
    "markdown": markdown_rows,
}

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")


def _title(text: str) -> str:
    """The heading without closing hashes. No regex: on a line of spaces it would take minutes."""
    bare = text.rstrip("#")
    return bare.rstrip() if bare.endswith((" ", "\t")) or not bare else text


def _section(level: int, title: str, line: int) -> dict[str, Any]:
    return {"level": level, "title": title, "line": line, "words": 0}


def _is_worth_a_row(section: dict[str, Any]) -> bool:
    return bool(section["level"] or section["words"])


def _fence_after(text: str, fence: str) -> str:
    """The mark that closes the code block we are in after this line, or nothing."""
    mark = text.lstrip()[:3]
    if fence:
        return "" if mark == fence else fence
    return mark if mark in ("```", "~~~") else ""


def _without_byte_order_mark(raw: bytes) -> bytes:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Discard("the file is UTF-16; convert it to UTF-8")
    return raw.removeprefix(codecs.BOM_UTF8)


def _likely_delimiter(file: BinaryIO) -> str:
    header = file.readline(LONGEST_ROW)
    file.seek(0)
    return max(DELIMITERS, key=lambda delimiter: header.count(delimiter.encode()))


def distinct(names: list[str]) -> list[str]:
    """These names of columns, each once and none empty. Raises Discard for more than 500."""
    if len(names) > MOST_COLUMNS:
        raise Discard(f"the file has more than {MOST_COLUMNS} columns")
    taken: dict[str, None] = {}
    for position, name in enumerate(names, start=1):
        taken[_free(name.strip() or f"column_{position}", taken)] = None
    return list(taken)


def _free(name: str, taken: Container[str]) -> str:
    if name not in taken:
        return name
    return next(numbered for number in count(2) if (numbered := f"{name}_{number}") not in taken)


def _row(line: int, value: Any) -> Row | Malformed:
    if not isinstance(value, dict):
        return Malformed(line, "it is not a JSON object")
    if _is_deeper_than(DEEPEST_ROW, value):
        return Malformed(line, f"it is nested deeper than {DEEPEST_ROW} levels")
    return Row(line, value)


def _is_deeper_than(levels: int, value: Any) -> bool:
    level = [value]
    for _ in range(levels):
        level = [item for outer in level for item in _items_of(outer)]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def _items_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"an integer has more than {LONGEST_INTEGER} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if not isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_refuse)


def _items(text: _JsonText) -> Rows:
    text.skip()
    if text.peek() == "]":
        return text.skip()
    while True:
        text.peek()
        yield _row(text.line, text.value())
        mark = text.peek()
        if mark not in ("]", ","):
            raise text.fault("a comma or a closing bracket is missing")
        text.skip()
        if mark == "]":
            return None


class _JsonText:
    """JSON text, of which only the value being read is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.line = 1
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self.skip()
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def skip(self, end: int | None = None) -> None:
        end = self._at + 1 if end is None else end
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def value(self) -> Any:
        """The value that starts here."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                problem = ""
            except (ValueError, RecursionError) as error:
                end, problem = len(self._text), str(error)
            # What ends with the piece may go on in the next one: 12 could be 123.
            if not problem and (end < len(self._text) or self._ended):
                self.skip(end)
                return value
            if len(self._text) - self._at > LONGEST_ROW:
                raise self.fault(problem or f"a value is longer than {LONGEST_ROW:,} characters")
            if not self._read_more() and problem:
                raise self.fault(problem)

    def fault(self, problem: str) -> Discard:
        return Discard(f"the file is not valid JSON at or after line {self.line}: {problem}")

    def _read_more(self) -> bool:
        """Whether there was more. Reads twice as much each time a value does not end."""
        if self._ended:
            return False
        raw = self._file.read(max(PIECE, len(self._text) - self._at))
        self._ended = not raw
        try:
            more = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError:
            raise self.fault("it is not UTF-8") from None
        self._text, self._at = self._text[self._at :] + more, 0
        return not self._ended
