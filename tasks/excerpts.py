"""Excerpts: file contents cut to what a result may hold, whatever a stranger put into the file."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from typing import Any

LONGEST_TEXT = 200  # characters
LARGEST_EXCERPT = 200_000  # bytes of JSON, of the million that a result may have
MOST_NODES, DEEPEST = 5_000, 20


class TooLarge(ValueError):
    """A structure that would not fit into a result."""


def clip(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text without what PostgreSQL cannot store, and with an ellipsis in place of what is too long."""
    text = text[: longest + 1].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return text if len(text) <= longest else text[: longest - 1] + "…"


def excerpt(values: dict[str, Any]) -> dict[str, Any]:
    """A row with long texts clipped and large structures shown as clipped JSON."""
    return {clip(str(name)): _excerpt_of(value) for name, value in values.items()}


class Shelf:
    """Keeps the first items that fit into ``limit`` bytes of JSON together, and counts all."""

    def __init__(self, *, most: int | None = None, limit: int = LARGEST_EXCERPT) -> None:
        self.items: list[dict[str, Any]] = []
        self.count = 0
        self._most, self._room = most, limit

    def add(self, item: dict[str, Any]) -> None:
        """Count an item, and keep it if all before it were kept and there is room."""
        self.count += 1
        if self._room < 0 or len(self.items) == self._most:
            return
        self._room -= len(json.dumps(item))
        if self._room >= 0:
            self.items.append(item)


def plain(value: Any) -> Any:
    """YAML's values as JSON's: dates as ISO text, keys as text, sets as lists.

    Raises TooLarge for more than 5,000 values or 20 levels. Aliases let a few lines of YAML stand for
    billions of values, so they are counted while they are unfolded.
    """
    return _Unfolding().plain(value, 0)


def _excerpt_of(value: Any) -> Any:
    if isinstance(value, str):
        return clip(value)
    if isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False)
        shown = clip(text.replace("\\u0000", "\ufffd"))
        return value if shown == text else shown
    return value


class _Unfolding:
    def __init__(self) -> None:
        self.nodes = 0

    def plain(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES or depth > DEEPEST:
            raise TooLarge(f"it holds more than {MOST_NODES:,} values or {DEEPEST} levels")
        if isinstance(value, dict):
            return {clip(str(self._scalar(key))): self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.plain(item, depth + 1) for item in value]
        return self._scalar(value)

    def _scalar(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < 2**63:
            return value
        if isinstance(value, float) and abs(value) < float("inf"):
            return value
        if isinstance(value, date | datetime | time):
            return value.isoformat()
        return clip(_text_of(value), 2_000)


def _text_of(value: Any) -> str:
    # hex, because Python refuses to write integers of thousands of digits in decimal.
    return hex(value) if isinstance(value, int) else str(value)
