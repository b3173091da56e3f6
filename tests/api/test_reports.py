"""Reports are downloaded as files that do nothing in a browser."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from capataz.models import Report
from tests.api.conftest import Caller

Problem = Callable[[Any, int], dict[str, Any]]


@pytest.fixture
def report_id(db: None) -> uuid.UUID:
    made = uuid.uuid4()
    Report.objects.keep(made, "Ventas", {"html": b"<p>", "pdf": b"%PDF"})
    return made


@pytest.mark.parametrize(
    ("format", "kind", "content"),
    [("html", "text/html; charset=utf-8", b"<p>"), ("pdf", "application/pdf", b"%PDF")],
)
def test_a_report_is_a_file_to_download(
    format: str, kind: str, content: bytes, viewer: Caller, report_id: uuid.UUID
) -> None:
    response = viewer.get(f"/reports/{report_id}?format={format}")
    assert (response.status_code, response.content) == (200, content)
    assert response["Content-Type"] == kind
    assert response["Content-Disposition"] == f'attachment; filename="report-{report_id}.{format}"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"].startswith("default-src 'none'")
    assert response["Cache-Control"] == "private, no-store"


def test_what_there_is_not_is_a_problem(viewer: Caller, report_id: uuid.UUID, problem: Problem) -> None:
    assert problem(viewer.get(f"/reports/{uuid.uuid4()}?format=html"), 404)["code"] == "unknown_report"
    problem(viewer.get(f"/reports/{report_id}?format=md"), 404)
    problem(viewer.get("/reports/nothing?format=html"), 404)


@pytest.mark.parametrize("query", ["?format=exe", "", "?format="])
def test_a_format_that_is_not_known_is_refused(
    query: str, viewer: Caller, report_id: uuid.UUID, problem: Problem
) -> None:
    document = problem(viewer.get(f"/reports/{report_id}{query}"), 422)
    assert document["errors"][0]["pointer"] == "/query/format"
