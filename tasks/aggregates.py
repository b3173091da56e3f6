"""Aggregates: count, sum, minimum, maximum and mean of columns, for all rows or for each group of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from typing import Any

from capataz.errors import Discard
from tasks import cells

MOST_GROUPS = 50_000
LONGEST_KEY = 500  # characters
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class NotANumber(ValueError):
    """A cell that cannot be added up."""

    def __init__(self, column: str, value: Any) -> None:
        super().__init__(f"{cells.text(value)[:60]!r} is not a number")
        self.column = column


class Numbers:
    """The numbers of one column. Integers are added exactly, others without losing small ones."""

    __slots__ = ("_error", "_float", "_integer", "count", "maximum", "minimum")

    def __init__(self) -> None:
        self.count = self._integer = 0
        self._float = self._error = 0.0
        self.minimum: float | None = None
        self.maximum: float | None = None

    def add(self, number: float) -> None:
        """Count a number."""
        self.count += 1
        if self.minimum is None or number < self.minimum:
            self.minimum = number
        if self.maximum is None or number > self.maximum:
            self.maximum = number
        if isinstance(number, int):
            self._integer += number
            return
        # Neumaier's summation: what the sum is too short for is kept apart.
        total = self._float + number
        larger, smaller = (self._float, number) if abs(self._float) >= abs(number) else (number, self._float)
        self._error += (larger - total) + smaller
        self._float = total

    def summary(self) -> dict[str, Any]:
        """Everything at once; without numbers the sum is 0 and the rest is null."""
        floating = self._float + self._error
        total = self._integer + floating if floating else self._integer
        mean = total / self.count if self.count else None
        return {
            "count": self.count,
            "sum": cells.json_value(total),
            "min": self.minimum,
            "max": self.maximum,
            "mean": cells.json_value(mean),
        }


class Aggregates:
    """Groups of rows, each with its numbers."""

    def __init__(self, group_by: list[str], columns: list[str]) -> None:
        self._by, self._columns = group_by, columns
        self._groups: dict[tuple[Any, ...], tuple[list[int], list[Numbers]]] = {}
        if not group_by:
            self._groups[()] = ([0], [Numbers() for _ in columns])

    def add(self, values: dict[str, Any]) -> None:
        """Count a row. Raises NotANumber, with nothing counted, and Discard for too many groups."""
        numbers = [_number(name, values.get(name)) for name in self._columns]
        key = tuple(_key(values.get(name)) for name in self._by)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) == MOST_GROUPS:
                raise Discard(f"there are more than {MOST_GROUPS:,} groups")
            group = self._groups[key] = ([0], [Numbers() for _ in self._columns])
        group[0][0] += 1
        for column, number in zip(group[1], numbers, strict=True):
            if number is not None:
                column.add(number)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for key, (rows, columns) in self._groups.items():
            summaries = {name: column.summary() for name, column in zip(self._columns, columns, strict=True)}
            yield {"group": dict(zip(self._by, key, strict=True)), "rows": rows[0], "columns": summaries}


def _key(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    return cells.text(value)[:LONGEST_KEY]


def _number(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, int):
            return value
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            return int(value)
        number = float(value)
    except (ValueError, TypeError):
        raise NotANumber(name, value) from None
    if not isfinite(number) or (isinstance(value, str) and "_" in value):
        raise NotANumber(name, value)
    return number
