"""Reports: what a registered query answers, to be read by people."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks import queries
from tasks.exports import Registered
from tasks.report_files import WRITERS, Content

MOST_ROWS = 2_000
LARGEST_FILE = 16 * 1024**2  # bytes


class ReportJob(Registered):
    """A registered query, its parameters, a title, and the formats that are wanted."""

    title: Annotated[str, Field(min_length=1, max_length=200)] = "Report"
    formats: Annotated[list[Literal["html", "md", "pdf"]], Field(min_length=1, max_length=3)] = [
        "html", "md", "pdf",
    ]  # fmt: skip


@handler(
    "report",
    payload=ReportJob,
    queue="files",
    retry=exponential(base=10, cap=300, attempts=3),
    soft_time_limit=3900,
    time_limit=3960,
)
def report(task: RunningTask, job: ReportJob) -> dict[str, Any]:
    """Write a report in each format, and keep it under the task's id.

    More than 2,000 rows, and a file of more than 16 MiB, are discarded.
    """
    # Imported here: handlers are registered before Django has loaded models.
    from capataz.models.report import Report

    task.progress(10, "query")
    query = queries.find(job.query)
    with queries.running(query, query.values(job.params)) as answer:
        content = Content(job.title, answer.names)
        for row in answer.rows:
            if len(content.rows) == MOST_ROWS:
                raise Discard(f"the query has more than {MOST_ROWS:,} rows; make an export of it")
            content.add(row)
    task.progress(50, f"{len(content.rows)} rows")
    files: dict[str, bytes] = {format: WRITERS[format](content) for format in dict.fromkeys(job.formats)}
    for format, data in files.items():
        if len(data) > LARGEST_FILE:
            raise Discard(f"the report is larger than {LARGEST_FILE:,} bytes as {format}")
    task.progress(90, "files")
    Report.objects.keep(task.id, job.title, files)
    task.progress(100, "kept")
    return {
        "reportId": str(task.id),
        "rows": len(content.rows),
        "formats": {format: len(data) for format, data in files.items()},
        "replacedCharacters": content.replaced,
    }
