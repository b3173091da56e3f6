"""Slack: the messages of a channel.

Slack gives the newest first. So a channel is walked back from its newest message to the cursor, and only when
the walk has arrived there, the cursor moves up to where it began. A walk may take several runs.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from django.conf import settings

from tasks.models import ExternalItem, ExternalSource
from tasks.web import ComeBackLater, SourceFailed, ask

PREFIX = "slack:"
# Pages that one run reads of one channel; the next run goes on from there.
PAGES = 10


def cursor_at(moment: datetime) -> str:
    """A time as Slack writes it."""
    return f"{max(0.0, moment.timestamp()):.6f}"


def read(source: ExternalSource) -> dict[str, int]:
    """Store the messages since the cursor, page by page; returns how much was read."""
    # This machine's clock only bounds the walk: a message that is newer than it is met by the next one.
    latest, token = source.walk_bottom or f"{time.time():.6f}", ""
    pages = items = 0
    while pages < PAGES:
        answer = _ask(source, latest, token)
        messages = _messages(source, answer)
        pages, items = pages + 1, items + len(messages)
        times = [message.external_id for message in messages]
        top = max([source.walk_top or source.cursor, *times], key=Decimal)
        bottom = min([source.walk_bottom or latest, *times], key=Decimal)
        token = _token(answer)
        if not token and not answer.get("has_more"):
            source.store(messages, cursor=top, walk_top="", walk_bottom="")
            break
        if not token and bottom == latest:
            raise SourceFailed("says that there is more, and gives nothing older")
        source.store(messages, walk_top=top, walk_bottom=bottom)
        # A token goes on within the question that it came from.
        latest = latest if token else bottom
    return {"pages": pages, "items": items}


def _ask(source: ExternalSource, latest: str, token: str) -> dict[str, Any]:
    question = {"channel": source.name.removeprefix(PREFIX), "oldest": source.cursor, "latest": latest}
    query = urlencode({**question, "limit": 200, **({"cursor": token} if token else {})})
    url = f"{settings.SLACK_API_URL.rstrip('/')}/conversations.history?{query}"
    answer = ask(url, {"Authorization": f"Bearer {settings.SLACK_TOKEN}"}).document
    if not isinstance(answer, dict):
        raise SourceFailed("answered with something that is not an object")
    if answer.get("ok") is not True:
        _refuse(str(answer.get("error", "")))
    return answer


def _refuse(error: str) -> None:
    if error == "ratelimited":
        raise ComeBackLater
    # One of Slack's words, such as channel_not_found; anything else might quote what was sent.
    raise SourceFailed(f"says {error}" if re.fullmatch(r"[a-z_]{1,60}", error) else "says that it failed")


def _messages(source: ExternalSource, answer: dict[str, Any]) -> list[ExternalItem]:
    messages = answer.get("messages")
    if not isinstance(messages, list):
        raise SourceFailed("answered without a list of messages")
    return [_message(source, each) for each in messages]


def _message(source: ExternalSource, document: Any) -> ExternalItem:
    at = document.get("ts") if isinstance(document, dict) else None
    if not isinstance(at, str) or not re.fullmatch(r"[0-9]{1,11}\.[0-9]{6}", at):
        raise SourceFailed("answered with a message that has no ts")
    changed_at = datetime.fromtimestamp(float(at), UTC)
    return ExternalItem(source=source, external_id=at, changed_at=changed_at, document=document)


def _token(answer: dict[str, Any]) -> str:
    """Where Slack says that the next page is; empty if it does not say."""
    about = answer.get("response_metadata")
    return str(about.get("next_cursor") or "") if isinstance(about, dict) else ""
