"""Reports: the files that tasks have made."""

from __future__ import annotations

import uuid
from typing import Literal

from django.http import HttpRequest, HttpResponse
from ninja import Router
from ninja.responses import codes_4xx

from capataz.api.auth import Allows
from capataz.api.problems import Problem
from capataz.api.schemas import ProblemOut
from capataz.models import ReportFile, Role

router = Router(tags=["reports"])

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "pdf": "application/pdf",
}


@router.get(
    "/reports/{uuidstr:report_id}",
    auth=Allows(Role.VIEWER),
    response={codes_4xx: ProblemOut},
    url_name="report",
)
def download(request: HttpRequest, report_id: str, format: Literal["html", "md", "pdf"]) -> HttpResponse:
    """A report as a file. Its id is the `reportId` of its task's result."""
    file = ReportFile.objects.filter(report_id=uuid.UUID(report_id), format=format).first()
    if file is None:
        raise Problem(404, "unknown_report", "There is no report of this id in this format.")
    response = HttpResponse(bytes(file.content), content_type=CONTENT_TYPES[format])
    response["Content-Disposition"] = f'attachment; filename="report-{report_id}.{format}"'
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    response["Cache-Control"] = "private, no-store"
    return response
