"""How values look on the wire: RFC 3339 in UTC with milliseconds, durations in milliseconds, compact JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.http import HttpResponse


def moment(when: datetime | None) -> str | None:
    """A time, such as ``2030-01-31T12:00:00.000Z``."""
    if when is None:
        return None
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(length: timedelta | None) -> int | None:
    """A duration, never below zero: two clocks may disagree by a little."""
    return None if length is None else max(0, round(length / timedelta(milliseconds=1)))


def ago(length: timedelta) -> str:
    """How long ago something was, as the dashboard's Spanish says it: ``hace 2 seg``."""
    seconds = max(0, int(length.total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"hace {seconds // size} {unit}"
    return f"hace {seconds} seg"


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """A JSON response. What a client reads is never to be kept by a cache."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    response = HttpResponse(text, status=status, content_type="application/json")
    response["Cache-Control"] = "no-store"
    for name, value in (headers or {}).items():
        response[name] = value
    return response
