"""Queries: the only SQL that exports run, registered under names, with parameters that the driver binds."""

from __future__ import annotations

import re
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.conf import settings
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from capataz.errors import ConfigurationError, Discard
from tasks.excerpts import clip
from tasks.rows import distinct

if TYPE_CHECKING:
    import psycopg

NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
PARAMETER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "date": date,
    "datetime": datetime,
    "uuid": uuid.UUID,
}
LONGEST_TEXT = 10_000  # characters of a parameter
FETCHED_ROWS = 100
LARGEST_TEMPORARY = 4 * 1024**2  # KiB of temporary files on the server
# What a column of this type of PostgreSQL's is in Parquet; every other one is text.
_KINDS = {16: "boolean", 20: "integer", 21: "integer", 23: "integer", 700: "number", 701: "number",
          1082: "date", 1114: "datetime", 1184: "moment"}  # fmt: skip


class Parameter(BaseModel):
    """What a parameter of a query takes. Without a default, it has to be given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    default: Any = None

    @property
    def is_required(self) -> bool:
        """Whether there is no default; a default may be null."""
        return "default" not in self.model_fields_set


@dataclass(frozen=True)
class Query:
    """A registered query. ``timeout`` is how many seconds it may take until its last row is written."""

    name: str
    sql: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    timeout: float = 600

    def values(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters as the driver binds them. Raises ValueError naming what is missing or wrong."""
        unknown = [name for name in given if name not in self.parameters]
        if unknown:
            known = ", ".join(self.parameters) or "no parameters"
            raise ValueError(f"the query {self.name!r} has no {clip(unknown[0], 60)!r}; it takes {known}")
        return {name: self._value(name, parameter, given) for name, parameter in self.parameters.items()}

    def _value(self, name: str, parameter: Parameter, given: dict[str, Any]) -> Any:
        if name not in given:
            if parameter.is_required:
                raise ValueError(f"the query {self.name!r} needs {name!r}, which is a {parameter.type}")
            return parameter.default
        if isinstance(given[name], str) and ("\0" in given[name] or len(given[name]) > LONGEST_TEXT):
            raise ValueError(f"{name!r} has a NUL, or more than {LONGEST_TEXT:,} characters")
        try:
            return TypeAdapter(TYPES[parameter.type]).validate_python(given[name])
        except ValidationError:
            raise ValueError(f"{name!r} must be a {parameter.type}") from None


_registry: dict[str, Query] = {}
_texts: dict[str, str] = {}


def register(
    name: str,
    sql: str,
    *,
    parameters: dict[str, Any] | None = None,
    timeout: float = 600,
    stands_for: str | None = None,
) -> Query:
    """Register a query for ``data_export``.

    ``parameters`` are types by name (``{"since": "date"}``, or with a default ``{"since": {"type": "date",
    "default": None}}``), written ``%(since)s`` in the SQL; then a percent sign is written twice. Clients that
    send the text ``stands_for`` get this query.

    Raises ConfigurationError for a declaration that makes no sense.
    """
    if not NAME.fullmatch(name):
        raise ConfigurationError(f"the name of the query {name!r} must match {NAME.pattern}")
    if name in _registry:
        raise ConfigurationError(f"the query {name!r} is registered twice")
    if not 0 < timeout <= 3600:
        raise ConfigurationError(f"timeout of the query {name!r} must be above 0 and at most 3600 s")
    made = {key: _parameter(name, key, value) for key, value in (parameters or {}).items()}
    used = set(re.findall(r"%\((\w+)\)s", sql))
    if used != set(made):
        raise ConfigurationError(
            f"the query {name!r} uses the parameters {sorted(used)} and declares {sorted(made)}"
        )
    _registry[name] = query = Query(name, sql, made, timeout)
    if stands_for is not None:
        _texts[_plain(stands_for)] = name
    return query


def find(name: str) -> Query:
    """The query of this name, or the one that stands for this text. Raises ValueError if there is none."""
    query = _registry.get(name) or _registry.get(_texts.get(_plain(name), ""))
    if query is None:
        known = ", ".join(sorted(_registry)) or "none"
        raise ValueError(
            "it is not registered. SQL from a client is never run: register it under a name, with "
            "tasks.queries.register(name, sql, parameters=...) in a module of CAPATAZ_HANDLERS or in the "
            f"file that CAPATAZ_QUERIES names, and submit the name; registered are: {known[:1000]}"
        )
    return query


def load() -> None:
    """Register what the file of CAPATAZ_QUERIES holds: a TOML table for each query, with ``sql``."""
    if not settings.CAPATAZ_QUERIES:
        return
    path = Path(settings.CAPATAZ_QUERIES)
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"CAPATAZ_QUERIES: {path} cannot be read: {error}") from None
    for name, table in document.items():
        if not isinstance(table, dict) or not isinstance(table.get("sql"), str):
            raise ConfigurationError(f"CAPATAZ_QUERIES: {name!r} in {path} needs sql")
        unknown = table.keys() - {"sql", "parameters", "timeout", "stands_for"}
        if unknown:
            raise ConfigurationError(
                f"CAPATAZ_QUERIES: {name!r} in {path} has unknown keys: {sorted(unknown)}"
            )
        register(name, **table)


@dataclass(frozen=True)
class Answer:
    """The names and kinds of a query's columns, and its rows, which are fetched as they are asked for."""

    names: list[str]
    kinds: dict[str, str]
    rows: Iterator[Any]


@contextmanager
def running(query: Query, values: dict[str, Any]) -> Iterator[Answer]:
    """What a registered query answers, in a transaction of its own of which nothing remains.

    Raises Discard if the query fails or takes too long.
    """
    from django.db import connection, transaction

    with transaction.atomic(durable=True):
        connection.ensure_connection()
        with answering(
            connection.connection, query.sql, values, name=repr(query.name), timeout=query.timeout
        ) as answer:
            yield answer
        transaction.set_rollback(True)  # read-only lets a few functions write all the same


@contextmanager
def answering(
    session: psycopg.Connection[Any], sql: str, values: dict[str, Any], *, name: str, timeout: float
) -> Iterator[Answer]:
    """What one SELECT answers, by a cursor on the server, in the transaction that begins here.

    The transaction is read-only, and ends as the caller says. Raises Discard if the query fails or takes
    too long; the messages call it by ``name``.
    """
    import psycopg
    from psycopg.types.json import JsonbLoader

    deadline = monotonic() + timeout
    too_long = Discard(f"the query {name} took longer than {timeout:g} s")

    def look_at_the_clock() -> None:
        left = deadline - monotonic()
        if left <= 0:
            raise too_long
        # Each time, since a query might have lifted it.
        session.execute(f"SET LOCAL statement_timeout = {int(left * 1000) + 1}")

    def fetched() -> Iterator[Any]:
        while True:
            look_at_the_clock()
            rows = cursor.fetchmany(FETCHED_ROWS)
            if not rows:
                return
            yield from rows

    try:
        session.execute("SET TRANSACTION READ ONLY")
        session.execute(
            "SELECT set_config('temp_file_limit', %s, true)"
            " WHERE has_parameter_privilege('temp_file_limit', 'SET')",
            [str(LARGEST_TEMPORARY)],
        )
        look_at_the_clock()
        # Not Django's own cursor: behind a pooler that one would hold all rows.
        with session.cursor(name="export") as cursor:
            cursor.adapters.register_loader("jsonb", JsonbLoader)
            cursor.execute(sql, values or None)
            columns = cursor.description or []
            names = distinct([column.name for column in columns])
            kinds = [_KINDS.get(column.type_code, "string") for column in columns]
            yield Answer(names, dict(zip(names, kinds, strict=True)), fetched())
    except psycopg.errors.QueryCanceled:
        raise too_long from None
    except psycopg.errors.ConfigurationLimitExceeded:
        raise Discard(f"the query {name} needs more temporary files than it may have") from None
    except (psycopg.OperationalError, psycopg.InterfaceError):
        raise
    except psycopg.Error as error:
        raise Discard(f"the query {name} failed: {clip(str(error), 500)}") from None


def _parameter(query: str, name: str, value: Any) -> Parameter:
    try:
        made = Parameter.model_validate({"type": value} if isinstance(value, str) else value)
    except ValidationError as error:
        raise ConfigurationError(f"parameter {name!r} of the query {query!r}: {error}") from None
    if made.type not in TYPES or not PARAMETER.fullmatch(name):
        raise ConfigurationError(
            f"parameter {name!r} of the query {query!r} must match {PARAMETER.pattern} and be of a type of "
            f"{', '.join(TYPES)}"
        )
    return made


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip("; ")
