"""The body of a request: JSON that PostgreSQL can keep and that means the same to everyone, or a problem."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from django.conf import settings
from django.http import HttpRequest
from ninja.parser import Parser

from capataz import jsontext
from capataz.api.problems import Problem
from capataz.errors import Fault

MEBIBYTE = 1024 * 1024
BULK_BYTES = 64 * MEBIBYTE
BULK_URL_NAME = "submit-many"
MAX_DEPTH = 32
MAX_INTEGER = 2**63  # what a client's 64-bit integer holds

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class BodyParser(Parser):
    """Reads bodies for django-ninja."""

    def parse_body(self, request: HttpRequest) -> Any:
        """The body's value. Raises Problem: 413, 415, or 422 with what is wrong."""
        _check_size(request)
        _check_type(request)
        return parse(request.body)


def parse(body: bytes) -> Any:
    """The value of this JSON text. Raises Problem 422, which never repeats what the text says."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        _refuse("not_utf8", f"is not UTF-8 at byte {error.start}")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_not_a_number,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        _refuse("not_json", f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        _refuse_depth()
    if jsontext.has_nul(text):
        _refuse("nul", "contains the character U+0000, which PostgreSQL cannot keep")
    _check_depth(value)
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def body_limit(request: HttpRequest) -> int:
    """The most bytes that the body of this request may have."""
    match = request.resolver_match
    if match is not None and str(match.url_name).startswith(BULK_URL_NAME):
        return BULK_BYTES
    return max(MEBIBYTE, 4 * settings.MAX_PAYLOAD)


def _check_size(request: HttpRequest) -> None:
    limit = body_limit(request)
    if len(request.body) > limit:
        raise Problem(
            413, "too_large", f"The body has {len(request.body)} bytes, and at most {limit} are taken."
        )


def _check_type(request: HttpRequest) -> None:
    charset = request.content_params.get("charset", "utf-8") if request.content_params else "utf-8"
    if request.content_type != "application/json" or charset.lower() not in ("utf-8", "utf8"):
        raise Problem(415, "unsupported_media_type", "Send the body as application/json in UTF-8.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        _refuse("duplicate_key", "names a key twice in one object")
    return made


def _not_a_number(_: str) -> NoReturn:
    _refuse("not_json", "contains NaN or an infinity, which are not JSON")


def _integer(text: str) -> int:
    # The length first: converting a million digits takes its time.
    if len(text) > 20 or not -MAX_INTEGER <= (number := int(text)) < MAX_INTEGER:
        _refuse("out_of_range", "contains an integer that does not fit into 64 bits")
    return number


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        _refuse("out_of_range", "contains a number that does not fit into 64 bits")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    _refuse_depth()


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        _refuse("lone_surrogate", "contains a lone surrogate, which is not a character")


def _refuse_depth() -> NoReturn:
    _refuse("too_deep", f"is nested more than {MAX_DEPTH} levels deep")


def _refuse(code: str, detail: str) -> NoReturn:
    raise Problem(422, "invalid_json", "The body cannot be read.", faults=[Fault("", code, detail)])
