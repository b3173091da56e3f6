"""What makes two tasks of a type the same one, and what becomes of the second.

A policy is declared with a handler or given with one submission. Which task holds a key is decided by the
database; here are the declarations and the keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.conf import settings

from capataz.errors import ConfigurationError
from capataz.policy import is_number

STATES = ("waiting", "unfinished", "until_success", "always")
MODES = ("return", "reject", "replace")
MAX_SECONDS = 366 * 24 * 3600.0
MAX_FACTOR = 10.0
MAX_PATHS = 20
LONGEST_KEY = 255
# How a throttled task that follows another at the end of its period holds the key.
TRAILING = "trailing"


@dataclass(frozen=True, kw_only=True)
class _Policy:
    """``by`` are paths such as ``payload.customer`` or ``payload.lines.0.sku``, and ``queue``; without any it
    is the whole payload. What is missing counts as null."""

    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        paths = (self.by,) if isinstance(self.by, str) else tuple(self.by)
        object.__setattr__(self, "by", paths)
        if len(paths) > MAX_PATHS:
            raise ConfigurationError(f"by has {len(paths)} paths, and at most {MAX_PATHS} are taken")
        for path in paths:
            if not isinstance(path, str) or not (path == "queue" or _is_of_payload(path)):
                raise ConfigurationError(
                    f"by must name paths such as payload.customer, or queue, not {path!r}"
                )

    @property
    def mode(self) -> str:
        """What becomes of a submission whose key is held."""
        raise NotImplementedError

    @property
    def scope(self) -> str:
        """The states in which a task holds its key, as its row says it."""
        raise NotImplementedError

    @property
    def holds_for(self) -> float | None:
        """The seconds after which a task holds its key no longer; None if only its state decides."""
        return None

    @property
    def replaces(self) -> bool:
        """Whether a task may be given the payload of a later submission."""
        return self.mode not in ("return", "reject")


@dataclass(frozen=True, kw_only=True)
class Unique(_Policy):
    """One task for each key, in these states and within ``period`` seconds, if that is given.

    ``return`` answers with the task that is there, ``reject`` with a Conflict. ``replace`` gives a task that
    still waits the new payload, priority and time; once it is released, a new one is accepted beside it.
    """

    states: str | None = None
    mode: str = "return"
    period: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ConfigurationError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.states is not None and self.states not in STATES:
            raise ConfigurationError(f"states must be one of {', '.join(STATES)}, not {self.states!r}")
        if self.mode == "replace" and self.states not in (None, "waiting"):
            raise ConfigurationError("mode replace is for the states waiting alone: what runs stays as it is")
        if self.period is not None:
            _check_seconds("period", self.period)

    @property
    def scope(self) -> str:
        """What was declared, or what the mode asks for."""
        return self.states or ("waiting" if self.mode == "replace" else "unfinished")

    @property
    def holds_for(self) -> float | None:
        """The period."""
        return self.period


@dataclass(frozen=True, kw_only=True)
class Throttle(_Policy):
    """One task for each key in ``period`` seconds, whatever becomes of it.

    What comes later within them is answered with that task; with ``trailing``, it is done once more at the
    end of the period, with the latest payload.
    """

    period: float
    trailing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seconds("period", self.period)
        if not isinstance(self.trailing, bool):
            raise ConfigurationError(f"trailing must be true or false, not {self.trailing!r}")

    @property
    def mode(self) -> str:
        """Whether what comes later is done once more."""
        return TRAILING if self.trailing else "return"

    @property
    def scope(self) -> str:
        """Only the time counts."""
        return "always"

    @property
    def holds_for(self) -> float | None:
        """The period."""
        return self.period


@dataclass(frozen=True, kw_only=True)
class Debounce(_Policy):
    """One task for each key once nothing more was submitted for ``wait`` seconds, with the latest payload;
    at the latest ``max_wait`` seconds after the first submission.

    From the submission after the ``after``-th on, each wait is ``factor`` times the one before, up to
    ``longest`` seconds.
    """

    wait: float
    max_wait: float | None = None
    factor: float = 1.0
    after: int = 5
    longest: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seconds("wait", self.wait)
        for name in ("max_wait", "longest"):
            limit = getattr(self, name)
            if limit is not None:
                _check_seconds(name, limit)
                if limit < self.wait:
                    raise ConfigurationError(f"{name} must not be below wait")
        if not (is_number(self.factor) and 1 <= self.factor <= MAX_FACTOR):
            raise ConfigurationError(f"factor must be 1 to {MAX_FACTOR:g}, not {self.factor!r}")
        if self.factor > 1 and self.longest is None:
            raise ConfigurationError("a factor above 1 needs the longest wait that it may lead to")
        if not (isinstance(self.after, int) and 0 <= self.after <= 1000):
            raise ConfigurationError(f"after must be 0 to 1000, not {self.after!r}")

    @property
    def mode(self) -> str:
        """Whoever waits is put off."""
        return "debounce"

    @property
    def scope(self) -> str:
        """What has begun is past."""
        return "waiting"


Policy = Unique | Throttle | Debounce

_SECONDS = {"periodMs": "period", "waitMs": "wait", "maxWaitMs": "max_wait", "longestMs": "longest"}
_OTHERS: dict[type[Policy], tuple[str, ...]] = {
    Unique: ("by", "states", "periodMs"),
    Throttle: ("by", "periodMs", "trailing"),
    Debounce: ("by", "waitMs", "maxWaitMs", "factor", "after", "longestMs"),
}


def from_document(document: Any) -> Policy:
    """The policy that this says, in the words of the API. Raises ConfigurationError."""
    if not isinstance(document, Mapping):
        raise ConfigurationError('must be an object such as {"mode": "return", "states": "unfinished"}')
    mode = document.get("mode", "return")
    kinds: dict[Any, type[Policy]] = {"throttle": Throttle, "debounce": Debounce}
    if not isinstance(mode, str) or mode not in (*MODES, *kinds):
        raise ConfigurationError(f"mode must be one of {', '.join((*MODES, *kinds))}, not {mode!r}")
    kind = kinds.get(mode, Unique)
    given = {name: value for name, value in document.items() if name != "mode" and value is not None}
    unknown = sorted(str(name) for name in given if name not in _OTHERS[kind])
    if unknown:
        known = ", ".join(_OTHERS[kind])
        raise ConfigurationError(f"mode {mode} does not know {', '.join(unknown)}; it knows {known}")
    needed = {Throttle: "periodMs", Debounce: "waitMs"}.get(kind)
    if needed is not None and needed not in given:
        raise ConfigurationError(f"mode {mode} needs {needed}")
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in _SECONDS:
            if not is_number(value):
                raise ConfigurationError(f"{name} must be a number of milliseconds, not {value!r}")
            options[_SECONDS[name]] = value / 1000
            continue
        if name == "by" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise ConfigurationError("by must be a list of paths such as payload.customer, or queue")
        options[name] = value
    return kind(**options) if kind is not Unique else Unique(mode=mode, **options)


def document(policy: Policy) -> dict[str, Any]:
    """This policy in the words of the API."""
    names = {Throttle: "throttle", Debounce: "debounce"}
    said: dict[str, Any] = {"mode": names.get(type(policy), policy.mode)}
    for name in _OTHERS[type(policy)]:
        value = getattr(policy, _SECONDS.get(name, name))
        said[name] = round(value * 1000) if name in _SECONDS and value is not None else value
    if isinstance(policy, Unique):
        said["states"] = policy.scope
    return {**said, "by": list(policy.by) or ["payload"]}


def unknown_paths(policy: Policy, schema: Mapping[str, Any]) -> list[str]:
    """The paths whose first name is no field of a payload of this JSON schema, which lists its fields."""
    fields = schema.get("properties")
    if fields is None or schema.get("additionalProperties"):
        return []
    return [path for path in policy.by if _steps(path) and _steps(path)[0] not in fields]


def key_of(
    policy: Policy, *, type: str, queue: str, payload: str, explicit: str | None, is_secret: bool
) -> str:
    """The key of a task of this type: a hash of what it is unique by, or of the key that was given.

    Numbers are the same if PostgreSQL says so: 1, 1.0 and 1e0. ``is_secret`` if the payload is not to be
    guessed from it.
    """
    values: Any = {"key": explicit}
    if explicit is None:
        data = json.loads(payload, parse_int=_Number, parse_float=_Number)
        values = [queue if path == "queue" else _at(data, _steps(path)) for path in policy.by or ("payload",)]
    secret = hashlib.blake2b(settings.SECRET_KEY.encode()).digest() if is_secret else b""
    text = _canonical([type, values])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=secret).hexdigest()


class _Number(str):
    """A number of a payload, as text."""


def _canonical(value: Any) -> str:
    if isinstance(value, _Number):
        sign, digits, exponent = Decimal(value).as_tuple()
        text = "".join(map(str, digits)).lstrip("0")
        zeros = len(text) - len(text.rstrip("0"))
        assert isinstance(exponent, int)  # neither NaN nor an infinity is JSON
        return f"{'-' * sign}{text[: len(text) - zeros]}e{exponent + zeros}" if text else "0"
    if isinstance(value, dict):
        pairs = sorted((json.dumps(name), _canonical(each)) for name, each in value.items())
        return "{" + ",".join(f"{name}:{each}" for name, each in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_canonical(each) for each in value) + "]"
    return json.dumps(value)


def _is_of_payload(path: str) -> bool:
    name, *steps = path.split(".")
    return name == "payload" and all(steps) and len(path) <= LONGEST_KEY


def _steps(path: str) -> list[str]:
    return path.split(".")[1:]


def _at(value: Any, steps: list[str]) -> Any:
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and step.isascii():
            value = value[int(step)] if len(step) < 10 and int(step) < len(value) else None
        else:
            return None
    return value


def _check_seconds(name: str, value: Any) -> None:
    if not (is_number(value) and 0 < value <= MAX_SECONDS):
        raise ConfigurationError(
            f"{name} must be above 0 and at most {MAX_SECONDS:.0f} seconds, not {value!r}"
        )


def faults_of_key(key: Any) -> Iterator[str]:
    """What is wrong with a key that was given."""
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and key.isprintable()):
        yield f"must have 1 to {LONGEST_KEY} printable characters"
