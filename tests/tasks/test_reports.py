"""Reports are made of registered queries, kept in rows, and read by people."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from pypdf import PdfReader
from pytest_django import Settings

from capataz.errors import Discard, InvalidSubmission
from capataz.handlers import RunningTask, find
from capataz.models import Report, ReportFile
from tasks import queries, reports

pytestmark = pytest.mark.django_db

ODD = '<script>alert(1)</script> | [a](javascript:x) *b* & `c` "d"\nnext'


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(queries, "_registry", dict(queries._registry))
    yield


def run(
    task_id: uuid.UUID | None = None, /, *, seen: list[tuple[int, str]] | None = None, **data: Any
) -> dict[str, Any]:
    handler = find("report")
    told = [] if seen is None else seen
    task = RunningTask(
        task_id or uuid.uuid4(),
        "report",
        1,
        1,
        report_progress=lambda percent, note: told.append((percent, note)),
    )
    result: dict[str, Any] = handler.function(task, handler.load(handler.parse(data)))
    return result


def content(result: dict[str, Any], format: str) -> bytes:
    return bytes(ReportFile.objects.get(report=result["reportId"], format=format).content)


def text_of_pdf(data: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)


def test_a_report_is_kept_in_every_format_with_its_progress() -> None:
    queries.register(
        "some", "SELECT i AS n, %(t)s::text AS t FROM generate_series(1, 60) i", parameters={"t": "string"}
    )
    seen: list[tuple[int, str]] = []
    task_id = uuid.uuid4()
    result = run(task_id, query="some", params={"t": "año"}, title="Ventas", seen=seen)
    assert [percent for percent, _ in seen] == [10, 50, 90, 100]
    assert (result["reportId"], result["rows"], result["replacedCharacters"]) == (str(task_id), 60, 0)
    assert result["formats"] == {format: len(content(result, format)) for format in ("html", "md", "pdf")}
    assert Report.objects.get(pk=task_id).title == "Ventas"
    assert b"<td>60</td><td>a\xc3\xb1o</td>" in content(result, "html")
    assert "| 60 | año |" in content(result, "md").decode()
    pdf = text_of_pdf(content(result, "pdf"))
    assert "Ventas" in pdf and "60 año" in pdf


def test_nothing_in_a_cell_or_title_is_markup() -> None:
    queries.register("odd", 'SELECT %(t)s::text AS "<b>h</b>"', parameters={"t": "string"})
    result = run(query="odd", params={"t": ODD}, title="<img src=x onerror=y>")
    page = content(result, "html").decode()
    assert "<script" not in page and "<img" not in page and "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | [a]" in page
    lines = content(result, "md").decode().splitlines()
    assert lines[0] == "# &lt;img src=x onerror=y&gt;" and len(lines) == 5
    assert lines[4] == (
        r'| &lt;script&gt;alert(1)&lt;/script&gt; \| \[a\](javascript:x) \*b\* \& \`c\` "d" next |'
    )


def test_a_pdf_says_what_its_font_does_not_have(settings: Settings) -> None:
    queries.register("far", "SELECT '日本'::text AS t")
    result = run(query="far", formats=["pdf"])
    assert result["replacedCharacters"] == 2 and set(result["formats"]) == {"pdf"}
    assert "2 characters are shown as ?" in text_of_pdf(content(result, "pdf"))


def test_a_table_of_many_pages_and_long_cells_fits() -> None:
    queries.register(
        "long", "SELECT repeat('word ', 500) AS a, repeat('x', 500) AS b FROM generate_series(1, 30)"
    )
    assert len(PdfReader(io.BytesIO(content(run(query="long"), "pdf"))).pages) > 1


def test_the_next_attempt_replaces_the_report() -> None:
    queries.register("now", "SELECT clock_timestamp()::text AS t")
    mine = uuid.uuid4()
    first = content(run(mine, query="now", formats=["md", "html"]), "md")
    assert content(run(mine, query="now", formats=["md"]), "md") != first
    assert ReportFile.objects.count() == Report.objects.count() == 1


@pytest.mark.parametrize(
    ("limit", "sql", "said"),
    [
        ("MOST_ROWS", "SELECT generate_series(1, 1000000000000)", "more than 5 rows"),
        ("LARGEST_FILE", "SELECT 1", "larger than 5 bytes"),
        ("", "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(21)), "at most 20 columns"),
    ],
)
def test_what_is_too_large_is_discarded(
    limit: str, sql: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit:
        monkeypatch.setattr(reports, limit, 5)
    queries.register("large", sql)
    with pytest.raises(Discard, match=said):
        run(query="large")
    assert not Report.objects.exists()


def test_only_registered_queries_are_reported() -> None:
    with pytest.raises(InvalidSubmission) as refused:
        run(query="SELECT * FROM auth_user")
    assert refused.value.faults[0].pointer == "data/query"


def test_reports_are_deleted_when_they_are_old() -> None:
    queries.register("one", "SELECT 1 AS n")
    old, new = run(query="one", formats=["md"]), run(query="one", formats=["md"])
    Report.objects.filter(pk=old["reportId"]).update(created_at=Now() - timedelta(days=31))
    assert Report.objects.prune(30) == 1
    assert [str(report.pk) for report in Report.objects.all()] == [new["reportId"]]
