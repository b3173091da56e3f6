"""The closing table: what became of the tasks, type by type."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from capataz.management.demo.census import TypeSummary
from capataz.management.demo.verdict import Deliveries
from capataz.management.demo.workload import Job

TITLE = "What became of the tasks; wait and run are medians in milliseconds"
NUMBERS = ("submitted", "completed", "failed", "cancelled", "retried", "recovered")


def closing_table(summaries: Sequence[TypeSummary], jobs: Sequence[Job], deliveries: Deliveries) -> Table:
    """A row for each type and one for all."""
    table = Table(
        title=TITLE, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("type", no_wrap=True, min_width=16)
    for name in (*NUMBERS, "wait", "run", "outputs"):
        table.add_column(name, justify="right", overflow="fold")
    for each in summaries:
        own = [job for job in jobs if job.act.type == each.type]
        numbers = [str(getattr(each, name)) for name in NUMBERS]
        table.add_row(each.type, *numbers, _ms(each.wait_ms), _ms(each.run_ms), _outputs(deliveries, own))
    table.add_section()
    totals = [str(sum(getattr(each, name) for each in summaries)) for name in NUMBERS]
    table.add_row("all", *totals, "", "", _outputs(deliveries, jobs))
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _outputs(deliveries: Deliveries, jobs: Sequence[Job]) -> str:
    right, expected = deliveries.count_of(jobs)
    return f"{right}/{expected}" if expected else ""
