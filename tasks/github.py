"""GitHub: the issues and pull requests of a repository, from those that changed longest ago on."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from django.conf import settings

from tasks.models import ExternalItem, ExternalSource
from tasks.web import Answer, SourceFailed, ask

PREFIX = "github:"
# Pages of a hundred that one run reads of one repository; the next run goes on from there.
PAGES = 10
# What changed so shortly before the cursor is asked for again: GitHub's times are whole seconds, and what
# changed in the same one may have come to light later.
OVERLAP = timedelta(seconds=5)


def cursor_at(moment: datetime) -> str:
    """A time as GitHub writes it."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def read(source: ExternalSource) -> dict[str, int]:
    """Store what has changed since the cursor, page by page; returns how much was read."""
    url, etag = _from_the_cursor(source), source.etag
    pages = items = 0
    while True:
        answer = ask(url, _headers(etag))
        pages += 1
        if answer.document is None:
            return {"pages": pages, "items": items}
        issues = _issues(source, answer.document)
        items += len(issues)
        cursor = max([source.cursor, *(cursor_at(issue.changed_at) for issue in issues)])
        moved, following = cursor > source.cursor, _next_page(url, answer)
        # An ETag belongs to one address, here that of the next look. If there are more pages, it says nothing
        # of them: a run that dies before it has read them would have them taken for read.
        is_all = not moved and not following and url == _from_the_cursor(source)
        source.store(issues, cursor=cursor, etag=_etag(answer) if is_all else "")
        if not following or (moved and pages >= PAGES):
            return {"pages": pages, "items": items}
        # Not the second page: an issue that changes meanwhile leaves the first one, and the one that takes
        # its place there would never be seen. Only where the cursor cannot move, there is no other way.
        url, etag = _from_the_cursor(source) if moved else _of_the_same_origin(url, following), ""


def _from_the_cursor(source: ExternalSource) -> str:
    since = cursor_at(datetime.fromisoformat(source.cursor) - OVERLAP)
    order = {"state": "all", "sort": "updated", "direction": "asc", "since": since, "per_page": 100}
    name = source.name.removeprefix(PREFIX)
    return f"{settings.GITHUB_API_URL.rstrip('/')}/repos/{name}/issues?{urlencode(order)}"


def _headers(etag: str) -> dict[str, str]:
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    if settings.GITHUB_TOKEN:
        headers["Authorization"] = f"Bearer {settings.GITHUB_TOKEN}"
    if etag:
        headers["If-None-Match"] = etag
    return headers


def _issues(source: ExternalSource, page: Any) -> list[ExternalItem]:
    if not isinstance(page, list):
        raise SourceFailed("answered with something that is not a list")
    return [_issue(source, each) for each in page]


def _issue(source: ExternalSource, document: Any) -> ExternalItem:
    try:
        number, changed_at = int(document["number"]), datetime.fromisoformat(document["updated_at"])
        changed_at = changed_at.astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise SourceFailed("answered with an issue that has no number or updated_at") from None
    return ExternalItem(source=source, external_id=str(number), changed_at=changed_at, document=document)


def _etag(answer: Answer) -> str:
    """The ETag, if it can be sent back as it is."""
    etag = answer.header("ETag")
    return etag if etag.isascii() and etag.isprintable() else ""


def _next_page(url: str, answer: Answer) -> str:
    """Where the Link header says that the next page is; empty if this was the last one."""
    found = re.search(r'<([^<>]*)>\s*;[^,<]*\brel="?next\b', answer.header("Link"))
    return found[1] if found else ""


def _of_the_same_origin(url: str, following: str) -> str:
    """``following``, unless it would take the token elsewhere."""
    try:
        following = urljoin(url, following)
        elsewhere = urlsplit(following)[:2] != urlsplit(url)[:2]
    except ValueError:
        elsewhere = True
    if elsewhere:
        raise SourceFailed("names a next page at another origin, which is not asked")
    return following
