"""Spreadsheets: the rows of an XLSX file, read and written one at a time."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from capataz.errors import Discard
from tasks import cells
from tasks.archives import checked_zip
from tasks.rows import MOST_COLUMNS, Malformed, Row, Rows, distinct

MOST_ROWS = 1_048_576  # what a sheet can have, its header included
LONGEST_CELL = 32_767  # characters
# The other parts are held in memory whole, shared strings as Python objects.
LARGEST_PART = 32 * 1024 * 1024
LARGEST_SHEET = 4 * 1024**3
LARGEST_INTEGER = 10**15  # a spreadsheet's numbers have 15 digits

_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_EPOCH = datetime(1899, 12, 30)


def xlsx_table(file: BinaryIO, sheet: str | None) -> tuple[list[str], Rows]:
    """The names in the first row of a sheet, and the rows after it. The first sheet, unless one is named.

    Raises Discard for what is no spreadsheet, or one that would unfold to more than is allowed.
    """
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    for part in checked_zip(file, largest=LARGEST_SHEET).infolist():
        if not part.filename.startswith("xl/worksheets/") and part.file_size > LARGEST_PART:
            raise Discard(f"{part.filename} in the workbook is larger than {LARGEST_PART:,} bytes")
    try:
        book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
        if sheet is not None and sheet not in book.sheetnames:
            known = ", ".join(book.sheetnames)[:500]
            raise Discard(f"the workbook has no sheet {sheet!r}; it has {known}")
        found = book[sheet] if sheet is not None else book.worksheets[0]
        found.reset_dimensions()  # what the file says of its size is not to be trusted
        rows = found.iter_rows(values_only=True)
        header = next(rows, ())
    except Discard:
        raise
    except (
        InvalidFileException,
        zipfile.BadZipFile,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        SyntaxError,
        AttributeError,
        OSError,
        EOFError,
    ) as error:
        raise Discard(f"the file is not a workbook that can be read: {type(error).__name__}") from None
    names = distinct([cells.text(name) for name in header])
    return names, _rows(names, rows)


def _rows(names: list[str], rows: Iterator[tuple[Any, ...]]) -> Rows:
    line = 1
    while True:
        line += 1
        try:
            values = next(rows)
        except StopIteration:
            return
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            SyntaxError,
            AttributeError,
            zipfile.BadZipFile,
            OSError,
            EOFError,
        ) as error:
            raise Discard(f"row {line} cannot be read: {type(error).__name__}") from None
        if all(value is None for value in values):
            continue
        if len(values) > len(names) and any(value is not None for value in values[len(names) :]):
            yield Malformed(line, f"{len(values)} cells instead of {len(names)}")
            continue
        padded = (*values, *[None] * (len(names) - len(values)))
        yield Row(line, dict(zip(names, padded, strict=False)))


class XlsxWriter:
    """Writes a workbook of one sheet. Text is text and never a formula; the same rows make the same bytes."""

    def __init__(self, file: BinaryIO, names: Sequence[str], *, raw: bool) -> None:
        if len(names) > MOST_COLUMNS:
            raise Discard(f"there are more than {MOST_COLUMNS} columns")
        self._names, self._raw, self._rows = names, raw, 0
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True)
        for name, text in _PARTS.items():
            self._zip.writestr(_entry(name), text)
        self._sheet = self._zip.open(_entry("xl/worksheets/sheet1.xml"), "w", force_zip64=True)
        self._sheet.write(f'{_XML}<worksheet xmlns="{_MAIN}"><sheetData>'.encode())
        self._write(list(names))

    def add(self, values: dict[str, Any]) -> None:
        """Write a row. Raises Discard when the sheet is full, ValueError for text that no cell can hold."""
        if self._rows == MOST_ROWS:
            raise Discard(f"a sheet has at most {MOST_ROWS:,} rows; write CSV, NDJSON or Parquet")
        self._write([values.get(name) for name in self._names])

    def close(self) -> None:
        """Write what ends the workbook."""
        self._sheet.write(b"</sheetData></worksheet>")
        self._sheet.close()
        self._zip.close()

    def _write(self, values: Sequence[Any]) -> None:
        text = "".join(_cell(value, raw=self._raw) for value in values)
        self._sheet.write(f"<row>{text}</row>".encode())
        self._rows += 1


def _cell(value: Any, *, raw: bool) -> str:  # noqa: PLR0911 - a kind of value each
    if value is None:
        return "<c/>"
    if isinstance(value, bool):
        return f'<c t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int) and abs(value) < LARGEST_INTEGER:
        return f"<c><v>{value}</v></c>"
    if isinstance(value, Decimal) and value == Decimal(repr(float(value))) and value.is_finite():
        return f"<c><v>{float(value)!r}</v></c>"
    if isinstance(value, float) and isfinite(value):
        return f"<c><v>{value!r}</v></c>"
    if isinstance(value, datetime) and value.tzinfo is None and value.year >= 1901:
        return f'<c s="2"><v>{_days(value)!r}</v></c>'
    if isinstance(value, date) and not isinstance(value, datetime) and value.year >= 1901:
        return f'<c s="1"><v>{(value - _EPOCH.date()).days}</v></c>'
    text = cells.text(value) if raw else cells.neutral(cells.text(value))
    if len(text) > LONGEST_CELL:
        raise ValueError(f"a cell has at most {LONGEST_CELL:,} characters, not {len(text):,}")
    if _NOT_XML.search(text):
        raise ValueError("a cell cannot hold control characters")
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(text, {chr(13): "&#13;"})}</t></is></c>'


def _days(value: datetime) -> float:
    return (value - _EPOCH).total_seconds() / 86_400


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": f'{_XML}<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/styles.xml" ContentType="{_TYPE}.styles+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'{_XML}<Relationships xmlns="{_RELATIONS}"><Relationship Id="rId1" '
    f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'{_XML}<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'{_XML}<Relationships xmlns="{_RELATIONS}"><Relationship Id="rId1" '
    f'Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/><Relationship Id="rId2" '
    f'Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>',
    "xl/styles.xml": f'{_XML}<styleSheet xmlns="{_MAIN}"><numFmts count="1">'
    '<numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd\\ hh:mm:ss"/></numFmts>'
    '<fonts count="1"><font/></fonts><fills count="1">'
    '<fill><patternFill patternType="none"/></fill></fills><borders count="1"><border/></borders>'
    '<cellStyleXfs count="1"><xf/></cellStyleXfs><cellXfs count="3"><xf/>'
    '<xf numFmtId="14" applyNumberFormat="1"/><xf numFmtId="164" applyNumberFormat="1"/></cellXfs>'
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>',
}
