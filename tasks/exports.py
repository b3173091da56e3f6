"""Exports: what a registered query answers, as a file."""

from __future__ import annotations

from contextlib import closing
from os import SEEK_END
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import exponential
from tasks import queries, tables
from tasks.payloads import Payload
from tasks.roots import EXPORTS, locate, path_under, writing
from tasks.tables import Format

MOST_ROWS = 10_000_000
LARGEST_EXPORT = 4 * 1024**3  # bytes
ROWS_BETWEEN_REPORTS = 10_000


class Destination(Payload):
    """Where the rows go; the suffix there is the format.

    A relative destination is under ``/exports``. ``maxRows`` may lower the limit of 10,000,000 rows.
    """

    format: Format | None = None
    destination: Annotated[str, path_under(EXPORTS)]
    overwrite: bool = False
    raw: bool = False
    max_rows: Annotated[int, Field(ge=1, le=MOST_ROWS)] = MOST_ROWS


class Registered(Payload):
    """The name of a registered query, and its parameters."""

    query: Annotated[str, Field(min_length=1, max_length=10_000)]
    params: dict[str, Any] = Field(default={}, max_length=100)

    @field_validator("query")
    @classmethod
    def _is_registered(cls, query: str) -> str:
        queries.find(query)
        return query

    @field_validator("params")
    @classmethod
    def _fit_the_query(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "query" in info.data:
            queries.find(info.data["query"]).values(params)
        return params


class Export(Destination, Registered):
    """The name of a registered query, its parameters, and where the rows go."""


@handler(
    "data_export",
    payload=Export,
    queue="files",
    retry=exponential(base=10, cap=300, attempts=3),
    soft_time_limit=7140,
    time_limit=7200,
)
def export(task: RunningTask, job: Export) -> dict[str, Any]:
    """Write the rows of a registered query to a file, read by a cursor in a read-only transaction.

    More rows or bytes than are allowed, and a query that fails or takes too long, are discarded.
    """
    query = queries.find(job.query)
    with queries.running(query, query.values(job.params)) as answer:
        return {"query": query.name, **write(task, job, answer)}


def write(task: RunningTask, job: Destination, answer: queries.Answer) -> dict[str, Any]:
    """Write all rows to the file that the job names; returns where they are."""
    target, kind, rows = locate(job.destination, EXPORTS), tables.format_of(job.destination, job.format), 0
    with writing(target, overwrite=job.overwrite, owner=task.id) as output:
        with closing(tables.writer(kind, output, answer.names, answer.kinds, raw=job.raw)) as out:
            for row in answer.rows:
                if rows == job.max_rows:
                    raise Discard(f"the query has more than {job.max_rows:,} rows")
                try:
                    out.add(dict(zip(answer.names, row, strict=True)))
                except (ValueError, OverflowError) as error:
                    reason = f"row {rows + 1}: {error}"
                    raise error if isinstance(error, Discard) else Discard(reason) from None
                rows += 1
                if rows % ROWS_BETWEEN_REPORTS == 0:
                    task.progress(50, f"{rows} rows, {output.tell()} bytes")
                if output.tell() > LARGEST_EXPORT:
                    raise Discard(f"the export is larger than {LARGEST_EXPORT:,} bytes")
        size = output.seek(0, SEEK_END)
    task.progress(100, f"{rows} rows")
    return {"destination": str(target), "format": kind, "rows": rows, "bytes": size}
