"""Cells: how one value is written where a format has no such type, the same for every pair of formats."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any

# What a spreadsheet takes for the start of a formula; the last four are full-width twins.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]+)*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?")


def neutral(text: str) -> str:
    """The text, after an apostrophe if a spreadsheet would take it for a formula; numbers are left alone."""
    if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        return "'" + text
    return text


def json_value(value: Any) -> Any:  # noqa: PLR0911 - a kind of value each
    """The value as JSON has it: times as ISO text, decimals as text, bytes as base64; NaN is null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return format(value, "f") if isinstance(value, Decimal) and value.is_finite() else str(value)


def text(value: Any) -> str:
    """The value as the text of a cell: null is empty, nested values are JSON, the rest as ``json_value``."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    plain = json_value(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else str(plain)


def guessed(cell: str, kind: str) -> Any:
    """The text of a CSV cell as the type that all of its column has; empty is null."""
    if cell.strip() == "":
        return None
    return _READ[kind](cell.strip()) if kind in _READ else cell


def _datetime(cell: str) -> datetime:
    return datetime.fromisoformat(cell.replace(",", "."))


_READ: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": lambda cell: cell.lower() == "true",
    "date": date.fromisoformat,
    "datetime": _datetime,
}
