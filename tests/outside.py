"""Another service, as far as ``external_sync`` asks one: GitHub and Slack in one small server of our own."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

Reply = tuple[int, dict[str, str], Any]


@dataclass
class Question:
    """One request that came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Outside:
    """Has issues and messages, and gives them as the services do. ``instead`` may answer in its place."""

    # Name to number to document, and channel to time to document.
    issues: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    messages: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    page: int = 100
    gives_tokens: bool = True
    asked: list[Question] = field(default_factory=list)
    # May do something before the question is answered, and answers it if it returns something.
    instead: Callable[[Question], Reply | bytes | None] = lambda question: None
    url: str = ""

    def issue(self, repository: str, number: int, second: int, title: str = "") -> None:
        """An issue that changed so many seconds after the beginning of 2026."""
        changed = datetime.fromtimestamp(JANUARY + second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = {"number": number, "updated_at": changed, "title": title or f"issue {number}"}
        self.issues.setdefault(repository, {})[number] = document

    def message(self, channel: str, second: int, text: str = "") -> None:
        """A message of so many seconds after the beginning of 2026."""
        at = f"{JANUARY + second}.000001"
        self.messages.setdefault(channel, {})[at] = {"type": "message", "ts": at, "text": text or str(second)}

    def answer(self, question: Question) -> Reply | bytes:
        """What comes back: status, headers and JSON, or bytes as they are."""
        instead = self.instead(question)
        if instead is not None:
            return instead
        if question.path == "/conversations.history":
            return self._history(question.query)
        return self._issues(question)

    def _issues(self, question: Question) -> Reply:
        _, _, owner, name, _ = question.path.split("/")
        query = question.query
        assert (query["state"], query["sort"], query["direction"]) == ("all", "updated", "asc")
        found = [
            each for each in self.issues[f"{owner}/{name}"].values() if each["updated_at"] >= query["since"]
        ]
        found.sort(key=lambda each: (each["updated_at"], each["number"]))
        size, page = min(self.page, int(query["per_page"])), int(query.get("page", 1))
        shown = found[(page - 1) * size : page * size]
        headers = {"ETag": f'W/"{hashlib.sha256(json.dumps(shown).encode()).hexdigest()}"'}
        if len(found) > page * size:
            following = f"{self.url}{question.path}?{urlencode({**query, 'page': page + 1})}"
            headers["Link"] = f'<{self.url}/?first>; rel="first", <{following}>; rel="next"'
        if question.headers.get("If-None-Match") == headers["ETag"]:
            return 304, headers, None
        return 200, headers, shown

    def _history(self, query: dict[str, str]) -> Reply:
        oldest, latest = Decimal(query["oldest"]), Decimal(query["latest"])
        found = [(Decimal(at), each) for at, each in self.messages[query["channel"]].items()]
        shown = [
            each for at, each in sorted(found, reverse=True, key=lambda one: one[0]) if oldest < at < latest
        ]
        first, size = int(query.get("cursor", 0)), min(self.page, int(query["limit"]))
        more = len(shown) > first + size
        token = str(first + size) if more and self.gives_tokens else ""
        answer = {"ok": True, "messages": shown[first : first + size], "has_more": more}
        return 200, {}, {**answer, "response_metadata": {"next_cursor": token}}


JANUARY = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())


def serve(outside: Outside) -> Callable[[], None]:
    """Let it answer at ``outside.url``, a loopback address; returns what ends that."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            question = Question(parts.path, query, dict(self.headers.items()))
            outside.asked.append(question)
            answer = outside.answer(question)
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                return
            status, headers, document = answer
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if status != 304:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    outside.url = f"http://127.0.0.1:{server.server_port}"
    # Looks for the end often: the usual half second would be waited for at the end of each test.
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end
