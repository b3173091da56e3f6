"""Columns: what a table's columns hold, learned row by row and forgotten at once."""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from capataz.errors import Discard
from tasks.rows import MOST_COLUMNS

_KINDS = re.compile(
    # Leading zeros make an identifier, not a number; 19 digits and more are one too.
    r"(?P<integer>[+-]?(?:0|[1-9][0-9]{0,17}))"
    r"|(?P<number>[+-]?(?:(?:0|[1-9][0-9]{0,17})?\.[0-9]{1,30}(?:[eE][+-]?[0-9]{1,2})?"
    r"|(?:0|[1-9][0-9]{0,17})[eE][+-]?[0-9]{1,2}))"
    r"|(?P<boolean>[Tt]rue|[Ff]alse|TRUE|FALSE)"
    r"|(?P<datetime>[0-9]{4}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9][0-9:.,+Z-]{0,21})"
    r"|(?P<date>[0-9]{4}-[01][0-9]-[0-3][0-9])"
)
_NUMBERS = ("integer", "number")


class Column:
    """What one column holds."""

    __slots__ = ("filled", "kinds", "maximum", "mean", "minimum", "numbers")

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.filled = self.numbers = 0
        self.mean = 0.0
        self.minimum: float | None = None
        self.maximum: float | None = None

    def add(self, value: Any, *, textual: bool) -> None:
        """Count a value; ``textual`` reads numbers and dates out of text, as a CSV file needs."""
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            return
        self.filled += 1
        kind = self.kind_of(value, textual=textual)
        self.kinds.add(kind)
        if kind in _NUMBERS:
            self._count(float(value) if kind == "number" else int(value))

    @staticmethod
    def kind_of(value: Any, *, textual: bool) -> str:
        """What a value that is not empty is; of text, what it says, if ``textual``."""
        if isinstance(value, datetime):
            return "datetime"
        if isinstance(value, date):
            return "date"
        if isinstance(value, Decimal):
            return "number"
        return _kind_of_text(value.strip()) if textual else _kind(value)

    def summary(self, name: str, rows: int, *, textual: bool) -> dict[str, Any]:
        """Name, type and empty cells; minimum, maximum and mean too if all of it is numbers."""
        kind = self._type(textual)
        summary: dict[str, Any] = {"name": name, "type": kind, "empty": rows - self.filled}
        if kind in _NUMBERS:
            summary |= {"min": self.minimum, "max": self.maximum, "mean": self.mean}
        return summary

    def _count(self, number: float) -> None:
        self.numbers += 1
        # Running, because a sum of many large numbers loses the small ones.
        self.mean += (number - self.mean) / self.numbers
        if self.minimum is None or number < self.minimum:
            self.minimum = number
        if self.maximum is None or number > self.maximum:
            self.maximum = number

    def _type(self, textual: bool) -> str:
        if not self.kinds:
            return "empty"
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        if self.kinds == {"integer", "number"}:
            return "number"
        if self.kinds == {"date", "datetime"}:
            return "datetime"
        return "string" if textual else "mixed"


class Columns:
    """All columns of a table, in the order in which they were met."""

    def __init__(self, *, textual: bool) -> None:
        self.rows = 0
        self._textual = textual
        self._columns: dict[str, Column] = {}

    def add(self, values: dict[str, Any]) -> None:
        """Count a row. Raises Discard beyond 500 columns: such a file is not a table."""
        self.rows += 1
        for name, value in values.items():
            column = self._columns.get(name)
            if column is None:
                column = self._new(name)
            column.add(value, textual=self._textual)

    def summary(self) -> list[dict[str, Any]]:
        """The summary of every column."""
        return [
            column.summary(name, self.rows, textual=self._textual) for name, column in self._columns.items()
        ]

    def _new(self, name: str) -> Column:
        if len(self._columns) == MOST_COLUMNS:
            raise Discard(f"the file has more than {MOST_COLUMNS} columns")
        return self._columns.setdefault(name, Column())


def _kind_of_text(text: str) -> str:
    found = _KINDS.fullmatch(text)
    return found.lastgroup or "string" if found else "string"


def _kind(value: Any) -> str:
    # bool first: to Python, True is an integer.
    kinds = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value)) or _kind_of_date(str(value))


def _kind_of_date(text: str) -> str:
    kind = _kind_of_text(text)
    return kind if kind in ("date", "datetime") else "string"
