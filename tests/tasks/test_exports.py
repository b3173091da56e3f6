"""Registered queries are exported to files, and nothing else is ever run."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet as pq
import pytest
from django.contrib.auth.models import User
from django.db import connection
from pytest_django import Settings

from capataz.errors import ConfigurationError, Discard, InvalidSubmission
from capataz.handlers import RunningTask, find
from tasks import exports, queries

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def folder(settings: Settings, tmp_path: Path) -> Path:
    settings.EXPORT_ROOT = tmp_path / "exports"
    return tmp_path / "exports"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(queries, "_registry", dict(queries._registry))
    monkeypatch.setattr(queries, "_texts", dict(queries._texts))
    yield


def run(task_id: uuid.UUID | None = None, /, **data: Any) -> dict[str, Any]:
    """As the platform does it: through the row's JSON text."""
    handler = find("data_export")
    task = RunningTask(task_id or uuid.uuid4(), "data_export", attempt=1, starts=1)
    result: dict[str, Any] = handler.function(task, handler.load(handler.parse(data)))
    return result


def test_the_seed_sample_is_exported(folder: Path) -> None:
    User.objects.create(username="ana", email="ana@example.com")
    User.objects.create(username="gone", is_active=False)
    result = run(
        query="SELECT * FROM users WHERE active = true", format="csv", destination="/exports/users.csv"
    )
    assert (result["rows"], result["destination"]) == (1, "/exports/users.csv")
    header, row = (folder / "users.csv").read_text().splitlines()
    assert header == '"id","username","email","date_joined"' and '"ana","ana@example.com"' in row


@pytest.mark.parametrize("text", ["DROP TABLE auth_user", "SELECT * FROM auth_user; SELECT 1", "nothing"])
def test_text_that_is_not_registered_is_refused_with_how_to_register_it(text: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        run(query=text, destination="a.csv")
    [fault] = refused.value.faults
    assert fault.pointer == "data/query"
    assert "tasks.queries.register" in fault.detail and "demo.active_users" in fault.detail


SQL = (
    "SELECT i AS n, %(t)s::text AS t, i::numeric / 4 AS q, date '2025-06-29' AS d, i > 1 AS b,"
    """ NULL::int AS e, '{"a": [1]}'::jsonb AS j"""
)


@pytest.mark.parametrize("kind", ["csv", "json", "ndjson", "parquet", "xlsx"])
def test_every_format_has_the_rows_with_their_types(folder: Path, kind: str) -> None:
    queries.register("some", f"{SQL} FROM generate_series(1, 2500) i ORDER BY i", parameters={"t": "string"})
    result = run(query="some", params={"t": "ñ"}, destination=f"a.{kind}")
    assert (result["rows"], result["format"]) == (2500, kind)
    path = folder / f"a.{kind}"
    if kind == "parquet":
        table = pq.read_table(path)
        assert [str(field.type) for field in table.schema] == [
            "int64", "string", "string", "date32[day]", "bool", "int64", "string",
        ]  # fmt: skip
        assert table.num_rows == 2500
    elif kind == "xlsx":
        rows = list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
        assert rows[2][:3] == (2, "ñ", 0.5) and len(rows) == 2501
    elif kind == "csv":
        assert path.read_text().splitlines()[2].startswith('"2","ñ","0.5')
    else:
        text = path.read_text()
        first: dict[str, Any] = json.loads(text)[0] if kind == "json" else json.loads(text.splitlines()[0])
        assert first | {"q": ""} == {
            "n": 1,
            "t": "ñ",
            "q": "",
            "d": "2025-06-29",
            "b": False,
            "e": None,
            "j": {"a": [1]},
        }


@pytest.mark.parametrize(
    "value", ["'; DROP TABLE auth_user; --", "' OR '1'='1", "%(t)s", "\\'; SELECT pg_sleep(9)", "$1", "%s"]
)
def test_a_parameter_is_data_and_never_sql(folder: Path, value: str) -> None:
    queries.register("echo", "SELECT %(t)s::text AS t", parameters={"t": "string"})
    run(query="echo", params={"t": value}, destination="a.json")
    assert json.loads((folder / "a.json").read_text()) == [{"t": value}]
    assert User.objects.count() == 0


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "needs 'n'"),
        ({"n": "x"}, "'n' must be a integer"),
        ({"n": 1, "m": 2}, "has no 'm'"),
        ({"n": 1, "t": "\0"}, "NUL"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_at_submission(params: dict[str, Any], said: str) -> None:
    parameters = {"n": "integer", "t": {"type": "string", "default": None}}
    queries.register("typed", "SELECT %(n)s::int, %(t)s::text", parameters=parameters)
    with pytest.raises(InvalidSubmission) as refused:
        run(query="typed", params=params, destination="a.csv")
    assert refused.value.faults[0].pointer == "data/params" and said in refused.value.faults[0].detail


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO auth_group (name) VALUES ('x') RETURNING id",
        "WITH x AS (DELETE FROM auth_user RETURNING id) SELECT * FROM x",
        "SELECT 1; DELETE FROM auth_user",
        "SELECT setval('auth_user_id_seq', 999)",
        "SELECT * FROM no_such_table",
        "SELECT 1 / 0",
    ],
)
def test_a_query_that_writes_or_fails_is_discarded_and_changes_nothing(folder: Path, sql: str) -> None:
    User.objects.create(username="ana")
    queries.register("bad", sql)
    with pytest.raises(Discard, match="'bad' failed"):
        run(query="bad", destination="a.csv")
    assert User.objects.count() == 1 and not (folder / "a.csv").exists()


def test_a_function_that_writes_all_the_same_leaves_nothing() -> None:
    queries.register("sly", "SELECT lo_create(0)")
    with suppress(Discard):  # a later PostgreSQL refuses it
        run(query="sly", destination="a.csv")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_largeobject_metadata")
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT pg_sleep(60)",
        "SELECT count(*) FROM generate_series(1, 1000000000000)",
        "SELECT i FROM generate_series(1, 1000000000000) i WHERE i < 0",
        # Rows that come one by one, and a timeout that the query itself has lifted.
        "SELECT pg_sleep(0.0002) FROM generate_series(1, 99999)",
        "SELECT set_config('statement_timeout', '0', true), pg_sleep(0.0002) FROM generate_series(1, 99999)",
    ],
)
def test_a_query_that_takes_too_long_is_discarded(folder: Path, sql: str) -> None:
    queries.register("slow", sql, timeout=0.3)
    before = time.monotonic()
    with pytest.raises(Discard, match=r"'slow' took longer than 0\.3 s"):
        run(query="slow", destination="a.csv")
    assert time.monotonic() - before < 20
    assert not list(folder.glob("*"))


def test_the_next_attempt_of_a_task_replaces_what_it_had_written(folder: Path) -> None:
    queries.register("now", "SELECT clock_timestamp() AS t")
    mine = uuid.uuid4()
    run(mine, query="now", destination="a.csv")
    first = (folder / "a.csv").read_text()
    run(mine, query="now", destination="a.csv")
    assert (folder / "a.csv").read_text() != first
    with pytest.raises(Discard, match="another file"):
        run(query="now", destination="a.csv")


def test_rows_are_fetched_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # Behind a pooler Django's own cursors would hold all rows.
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    queries.register("endless", "SELECT generate_series(1, 1000000000000) AS i", timeout=5)
    with pytest.raises(Discard, match="more than 1,000 rows"):
        run(query="endless", destination="a.csv", maxRows=1000)


def test_more_rows_or_bytes_than_are_allowed_are_discarded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries.register("endless", "SELECT generate_series(1, 1000000000000) AS i")
    with pytest.raises(Discard, match="more than 1,000 rows"):
        run(query="endless", destination="a.csv", maxRows=1000)
    monkeypatch.setattr(exports, "LARGEST_EXPORT", 5000)
    with pytest.raises(Discard, match="larger than 5,000 bytes"):
        run(query="endless", destination="a.csv")
    assert not (folder / "a.csv").exists()


def test_formulas_are_neutral_and_another_file_is_not_replaced(folder: Path) -> None:
    queries.register("formula", "SELECT %(t)s::text AS t", parameters={"t": "string"})
    run(query="formula", params={"t": "=1+1"}, destination="a.csv")
    assert (folder / "a.csv").read_text().splitlines()[1] == '"\'=1+1"'
    run(query="formula", params={"t": "=1+1"}, destination="a.csv")
    with pytest.raises(Discard, match="another file"):
        run(query="formula", params={"t": "other"}, destination="a.csv")
    run(query="formula", params={"t": "=2"}, destination="a.csv", overwrite=True, raw=True)
    assert (folder / "a.csv").read_text().splitlines()[1] == '"=2"'


@pytest.mark.parametrize("destination", ["../a.csv", "/data/a.csv", "/etc/passwd", "/exports/"])
def test_a_destination_elsewhere_is_refused_at_submission(destination: str) -> None:
    with pytest.raises(InvalidSubmission):
        run(query="demo.active_users", destination=destination)


def test_a_file_of_queries_is_loaded(settings: Settings, tmp_path: Path, folder: Path) -> None:
    settings.CAPATAZ_QUERIES = tmp_path / "queries.toml"
    settings.CAPATAZ_QUERIES.write_text(
        '["sales.since"]\nsql = "SELECT %(since)s::date AS d"\nparameters = { since = "date" }\n'
    )
    queries.load()
    run(query="sales.since", params={"since": "2025-06-29"}, destination="a.ndjson")
    assert (folder / "a.ndjson").read_text() == '{"d": "2025-06-29"}\n'


@pytest.mark.parametrize(
    "text", ["x", "[a]\n", "[a]\nsql = 1", '[a]\nsql = "SELECT 1"\nfoo = 1', '[A]\nsql = "SELECT 1"',
             '[a]\nsql = "SELECT %(b)s"', '[a]\nsql = "SELECT %(b)s"\nparameters = {b = "money"}',
             '[a]\nsql = "SELECT 1"\ntimeout = 0'],
)  # fmt: skip
def test_a_file_of_queries_that_makes_no_sense_stops_the_start(
    settings: Settings, tmp_path: Path, text: str
) -> None:
    settings.CAPATAZ_QUERIES = tmp_path / "queries.toml"
    settings.CAPATAZ_QUERIES.write_text(text)
    with pytest.raises(ConfigurationError):
        queries.load()
