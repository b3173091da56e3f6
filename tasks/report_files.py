"""How a report looks as HTML, as Markdown and as PDF."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

from django.conf import settings

from capataz.errors import Discard
from tasks import cells

MOST_PDF_COLUMNS = 20
LONGEST_PDF_CELL = 300

_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse}th,td{border:1px solid #999;padding:2px 6px;"
    "text-align:left;vertical-align:top}"
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&$])")


@dataclass
class Content:
    """What a report says: a table of texts under a title. ``replaced`` counts what the PDF's font lacks."""

    title: str
    names: list[str]
    rows: list[list[str]] = field(default_factory=list)
    replaced: int = 0

    def add(self, row: tuple[object, ...]) -> None:
        """Add a row."""
        self.rows.append([cells.text(value) for value in row])


def html(content: Content) -> bytes:
    """A page without scripts."""
    title = escape(content.title)
    head = "".join(f"<th>{escape(name)}</th>" for name in content.names)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in content.rows
    )
    text = (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
        "</body></html>\n"
    )
    return text.encode("utf-8", "replace")


def markdown(content: Content) -> bytes:
    """A table as GitHub has it; cells are text and nothing else."""
    lines = [f"# {_marked(content.title)}", "", _line(content.names), "|" + " --- |" * len(content.names)]
    lines += [_line(row) for row in content.rows]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def pdf(content: Content) -> bytes:
    """A table on pages of A4, in the font of CAPATAZ_REPORT_FONT or else in Latin-1."""
    from fpdf import FPDF

    if len(content.names) > MOST_PDF_COLUMNS:
        raise Discard(f"a PDF has at most {MOST_PDF_COLUMNS} columns; ask for html or md")
    made = FPDF(orientation="landscape")
    font = "helvetica"
    if settings.REPORT_FONT:
        font = "report"
        made.add_font(font, fname=str(settings.REPORT_FONT))
    made.add_page()

    def text(value: str) -> str:
        value = value if len(value) <= LONGEST_PDF_CELL else value[: LONGEST_PDF_CELL - 3] + "..."
        if settings.REPORT_FONT:
            return value
        known = value.encode("latin-1", "replace").decode("latin-1")
        content.replaced += sum(one != other for one, other in zip(known, value, strict=True))
        return known

    made.set_font(font, size=14)
    made.multi_cell(0, text=text(content.title), new_x="LMARGIN", new_y="NEXT")
    made.set_font(font, size=7)
    if content.names:
        from fpdf.fonts import FontFace

        with made.table(headings_style=FontFace(emphasis="")) as table:
            for row in [content.names, *content.rows]:
                table.row([text(cell) for cell in row])
    if content.replaced:
        made.multi_cell(0, text=f"{content.replaced} characters are shown as ?: the font does not have them.")
    return bytes(made.output())


WRITERS: dict[str, Callable[[Content], bytes]] = {"html": html, "md": markdown, "pdf": pdf}


def _line(row: list[str]) -> str:
    return "|" + "".join(f" {_marked(cell)} |" for cell in row)


def _marked(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")
