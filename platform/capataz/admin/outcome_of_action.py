"""What an action did to the chosen rows, told in one message each for success and refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest

from capataz.errors import CapatazError


def apply(
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    rows: Iterable[Any],
    verb: Callable[[Any], object],
    done: str,
) -> None:
    """Call ``verb`` on every row and say how many were ``done``, and how many refused, with one reason."""
    moved, refusals = 0, []
    for row in rows:
        try:
            verb(row)
            moved += 1
        except CapatazError as refusal:
            refusals.append(str(refusal))
    if moved:
        model_admin.message_user(request, f"{moved} {done}.", messages.SUCCESS)
    if refusals:
        model_admin.message_user(
            request, f"{len(refusals)} refused, for example: {refusals[0]}.", messages.WARNING
        )


def operator(request: HttpRequest) -> str:
    """How events name the person who acts."""
    return request.user.get_username()[:100]
