"""One question to another service over HTTP, with bounds on all that the answer may cost."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

# Seconds that a peer may be silent, and that a whole answer may take.
SILENCE = 20
PATIENCE = 60
# Bytes. A hundred issues with the longest texts that GitHub allows stay below it.
LARGEST = 32 * 1024 * 1024
# How long a service is left alone that does not say how long, and at the longest, whatever it says.
USUAL_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(days=1)


class SourceFailed(Exception):
    """A service could not be read. The message says why and quotes nothing of what was sent."""


class ComeBackLater(Exception):
    """A service asks to be left alone for ``wait``."""

    def __init__(self, wait: timedelta = USUAL_WAIT) -> None:
        self.wait = min(max(wait, timedelta(seconds=1)), LONGEST_WAIT)
        super().__init__(f"asks to be left alone for {self.wait}")


@dataclass(frozen=True)
class Answer:
    """What came back: JSON, or None if nothing has changed since the ETag that was sent."""

    document: Any
    headers: Message

    def header(self, name: str) -> str:
        """The value of a header; empty if there is none."""
        return str(self.headers.get(name, ""))


class _NoRedirects(HTTPRedirectHandler):
    """A redirect could lead the token to somebody else."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none: it becomes an HTTPError."""


def ask(url: str, headers: dict[str, str]) -> Answer:
    """GET one address of a service.

    Raises ComeBackLater if it answers with a rate limit, and SourceFailed for every other answer that is not
    JSON with status 200, or 304.
    """
    # Plain HTTP is for loopback addresses, which no proxy can reach.
    proxies = [ProxyHandler({})] if url.startswith("http:") else []
    opener = build_opener(_NoRedirects, *proxies)
    request = Request(url, headers={**headers, "User-Agent": "capataz"})  # noqa: S310 # the settings see to it
    try:
        with opener.open(request, timeout=SILENCE) as response:
            return Answer(_document(_body(response)), response.headers)
    except HTTPError as error:
        with error:
            if error.code == 304:
                return Answer(None, error.headers)
            raise _refusal(error.code, error.headers) from None
    except (OSError, HTTPException, ValueError) as error:
        # Not its text: that may quote what the peer has sent, and the peer knows the token.
        reason = getattr(error, "reason", error)
        raise SourceFailed(f"could not be read: {type(reason).__name__}") from None


def _body(response: HTTPResponse) -> bytes:
    deadline = time.monotonic() + PATIENCE
    body = bytearray()
    while chunk := response.read1(64 * 1024):
        body += chunk
        if len(body) > LARGEST:
            raise SourceFailed(f"answered with more than {LARGEST} bytes")
        if time.monotonic() > deadline:
            raise SourceFailed(f"took more than {PATIENCE} seconds to answer")
    return bytes(body)


def _document(body: bytes) -> Any:
    try:
        return _storable(json.loads(body))
    except (ValueError, RecursionError):
        raise SourceFailed("answered with something that is not JSON") from None


def _storable(value: Any) -> Any:
    """The same without the characters that PostgreSQL cannot keep: one of them would hold up all the rest."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(each) for key, each in value.items()}
    return value


def _refusal(status: int, headers: Message) -> Exception:
    if status in (403, 429):
        if after := headers.get("Retry-After"):
            return ComeBackLater(wait_of(after))
        if headers.get("X-RateLimit-Remaining") == "0":
            return ComeBackLater(_until(headers.get("X-RateLimit-Reset", "")))
        if status == 429:
            return ComeBackLater()
    if 300 <= status < 400:
        return SourceFailed(f"answered with a redirect ({status}), which is not followed")
    return SourceFailed(f"answered with status {status}")


def wait_of(after: str) -> timedelta:
    """What a header Retry-After says, in seconds or as a date."""
    if re.fullmatch(r"[0-9]{1,9}", after.strip()):
        return timedelta(seconds=int(after))
    try:
        return parsedate_to_datetime(after).astimezone(UTC) - datetime.now(UTC)
    except (ValueError, TypeError, OverflowError):
        return USUAL_WAIT


def _until(reset: str) -> timedelta:
    """From now to a time in seconds since 1970."""
    if not re.fullmatch(r"[0-9]{1,11}", reset.strip()):
        return USUAL_WAIT
    return timedelta(seconds=int(reset) - time.time())
