"""Sensitive values: encrypted in the rows, masked wherever somebody looks, scrubbed from error texts.

A handler names them by paths such as ``payload.card.number``, ``payload.headers.*``, ``result`` (all of
it). In the JSON that a row keeps, each is replaced by ``{"$encrypted": "v1:<key id>:<base64>"}``, bound to
its task, its column and its place, so that it cannot be moved elsewhere.

Whatever else has a name that sounds like a secret is masked where it is shown, but kept as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.conf import settings

from capataz.errors import ConfigurationError
from capataz.keyring import KeyRing, ring_of

PAYLOAD, RESULT = "payload", "result"
ENVELOPE = "$encrypted"
MASK = "[masked]"
ANY = "*"
# Shorter values would be found by accident all over a text.
SHORTEST_SCRUBBED = 4

_LOOKS_SECRET = re.compile(
    r"passw|passphrase|secret|token|authorization|api[-_ ]?key|private[-_ ]?key|cookie|credential"
    r"|(?:^|[^a-z])(?:pass|pwd|dsn|card|cvv|iban)(?:$|[^a-z])"
)
_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

Path = tuple[str, ...]


class Declared:
    """What a handler says about its payload and result: which values are sensitive, and which are not
    although their names sound so."""

    def __init__(self, sensitive: Sequence[str] = (), public: Sequence[str] = ()) -> None:
        """Raises ConfigurationError for a path that does not begin with ``payload`` or ``result``."""
        self.paths = list(sensitive)
        self._sensitive = [_parse(path) for path in sensitive]
        self._public = [_parse(path) for path in public]
        self._columns = frozenset(path[0] for path in self._sensitive)

    def __bool__(self) -> bool:
        return bool(self._sensitive)

    def covers(self, path: Path) -> bool:
        """Whether the value at this place is sensitive, or lies in one that is."""
        return any(_leads_to(declared, path) for declared in self._sensitive)

    def is_public(self, path: Path) -> bool:
        """Whether the value at this place may be shown whatever it is called."""
        return any(_leads_to(declared, path) for declared in self._public)

    def touches(self, column: str) -> bool:
        """Whether anything in this column is sensitive."""
        return column in self._columns


NOTHING = Declared()


def seal(text: str, declared: Declared, column: str, task_id: UUID) -> str:
    """JSON text of a payload or result, with its sensitive values encrypted for this task."""
    if not declared.touches(column):
        return text
    ring = _ring()

    def sealed(path: Path, value: Any) -> Any:
        if not declared.covers(path):
            return value
        plain = json.dumps(value, ensure_ascii=False).encode()
        return {ENVELOPE: ring.seal(plain, _place(task_id, path))}

    return json.dumps(_replaced((column,), json.loads(text), sealed), ensure_ascii=False)


def opened(value: Any, column: str, task_id: UUID) -> Any:
    """A payload or result as it was before ``seal``. Raises CannotDecrypt."""
    ring = _ring()

    def plain(path: Path, value: Any) -> Any:
        sealed = _sealed(value)
        return value if sealed is None else json.loads(ring.open(sealed, _place(task_id, path)))

    return _replaced((column,), value, plain)


def opened_text(text: str | bytes, column: str, task_id: UUID) -> str | bytes:
    """The same for JSON text; one without an encrypted value comes back as it is."""
    marked = f'"{ENVELOPE}"'
    if (marked.encode() if isinstance(text, bytes) else marked) not in text:  # type: ignore[operator]
        return text
    return json.dumps(opened(json.loads(text), column, task_id), ensure_ascii=False)


def has_envelope(text: str) -> bool:
    """Whether JSON text has an object with the name that is reserved for encrypted values."""
    return f'"{ENVELOPE}"' in text


def sealed_anew(value: Any, column: str, task_id: UUID) -> Any:
    """The same value with everything in it encrypted under the first key. Raises CannotDecrypt."""
    ring = _ring()

    def again(path: Path, value: Any) -> Any:
        sealed = _sealed(value)
        if sealed is None or sealed.split(":")[1] == ring.first:
            return value
        place = _place(task_id, path)
        return {ENVELOPE: ring.seal(ring.open(sealed, place), place)}

    return _replaced((column,), value, again)


def masked(value: Any, declared: Declared, column: str) -> Any:
    """A payload or result as everybody may see it."""
    return _replaced((column,), value, lambda path, each: MASK if _is_secret(path, each, declared) else each)


def scrubber(payload: Any, declared: Declared) -> Callable[[str], str]:
    """Replaces, in a text, the secret values of this (opened) payload by the mask."""
    found: set[str] = set()

    def collect(path: Path, value: Any) -> Any:
        if _is_secret(path, value, declared):
            found.update(_texts(value))
            return None
        return value

    _replaced((PAYLOAD,), payload, collect)
    if not found:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(each) for each in sorted(found, key=len, reverse=True)))
    return lambda text: pattern.sub(MASK, text)


def _texts(value: Any) -> Iterator[str]:
    """The forms in which a value may appear in a text."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
        return
    text = str(value)
    if value is not None and not isinstance(value, bool) and len(text) >= SHORTEST_SCRUBBED:
        yield from {text, repr(text)[1:-1], json.dumps(text)[1:-1]}


def _is_secret(path: Path, value: Any, declared: Declared) -> bool:
    if value is None or isinstance(value, bool) or value == "":
        return False
    if declared.covers(path) or _sealed(value) is not None:
        return True
    return _sounds_secret(path[-1]) and len(path) > 1 and not declared.is_public(path)


@lru_cache(4096)
def _sounds_secret(name: str) -> bool:
    return _LOOKS_SECRET.search(_WORD_BORDER.sub("_", name).lower()) is not None


def _replaced(path: Path, value: Any, change: Callable[[Path, Any], Any]) -> Any:
    """A copy of a JSON value in which ``change`` has had its way with every place, outermost first."""
    changed = change(path, value)
    if changed is not value:
        return changed
    if isinstance(value, dict):
        return {name: _replaced((*path, name), each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [_replaced((*path, str(index)), each, change) for index, each in enumerate(value)]
    return value


def _sealed(value: Any) -> str | None:
    """The sealed text, if this is what ``seal`` makes."""
    sealed = value.get(ENVELOPE) if isinstance(value, dict) and len(value) == 1 else None
    return sealed if isinstance(sealed, str) else None


def _place(task_id: UUID, path: Path) -> bytes:
    return json.dumps(["capataz_task", str(task_id), *path]).encode()


def _parse(text: str) -> Path:
    path = tuple(text.split("."))
    if path[0] not in (PAYLOAD, RESULT) or not all(path):
        hint = "use payload, result, or a path such as payload.card.number or payload.headers.*"
        raise ConfigurationError(f"{text!r} is no path of a value: {hint}")
    return path


def _leads_to(declared: Path, path: Path) -> bool:
    if len(declared) > len(path):
        return False
    return all(mine in (ANY, theirs) for mine, theirs in zip(declared, path, strict=False))


def _ring() -> KeyRing:
    return ring_of(tuple(settings.ENCRYPTION_KEYS))
