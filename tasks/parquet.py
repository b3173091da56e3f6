"""Parquet: rows read and written a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, BinaryIO

from capataz.errors import Discard
from tasks import cells
from tasks.rows import LONGEST_ROW, MOST_COLUMNS, Malformed, Row, Rows

BATCH_ROWS = 2_000
BATCH_BYTES = 8 * 1024 * 1024
# Bytes of a row group, unpacked, which is what reading one may take.
LARGEST_GROUP = 512 * 1024 * 1024


@cache
def arrow() -> Any:
    """pyarrow, loaded when it is first needed, on the allocator that gives memory back."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    return pyarrow


def parquet_table(file: BinaryIO) -> tuple[list[str], dict[str, str], Rows]:
    """The names and kinds of a file's columns, and its rows. Raises Discard for what cannot be read."""
    pa = arrow()
    try:
        source = pa.parquet.ParquetFile(file, buffer_size=256 * 1024, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Discard(f"the file is not valid Parquet: {str(error)[:200]}") from None
    if len(source.schema_arrow.names) > MOST_COLUMNS:
        raise Discard(f"the file has more than {MOST_COLUMNS} columns")
    for number in range(source.metadata.num_row_groups):
        if source.metadata.row_group(number).total_byte_size > LARGEST_GROUP:
            raise Discard(f"row group {number} is larger than {LARGEST_GROUP:,} bytes")
    names = source.schema_arrow.names
    if len(set(names)) < len(names):
        raise Discard("two columns of the file have the same name")
    return names, {field.name: _kind(field.type) for field in source.schema_arrow}, _rows(source)


def _rows(source: Any) -> Rows:
    pa, line = arrow(), 0
    try:
        for batch in source.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for values in _of(batch):
                line += 1
                yield Row(line, values) if values is not None else Malformed(line, "a value cannot be read")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Discard(f"row {line + 1} cannot be read: {str(error)[:200]}") from None


def _of(batch: Any) -> Iterator[dict[str, Any] | None]:
    # A slice at a time, because Python's objects take several times the space of the columns.
    rows = max(1, min(BATCH_ROWS, BATCH_ROWS * BATCH_BYTES // max(1, batch.nbytes * 4)))
    for start in range(0, batch.num_rows, rows):
        yield from batch.slice(start, rows).to_pylist()


def _kind(type: Any) -> str:
    is_ = arrow().types
    if is_.is_boolean(type):
        return "boolean"
    if is_.is_integer(type) and not is_.is_uint64(type):
        return "integer"
    if is_.is_floating(type):
        return "number"
    if is_.is_date(type):
        return "date"
    if is_.is_timestamp(type):
        return "datetime" if type.tz is None else "moment"
    return "string"


class ParquetWriter:
    """Writes rows in batches of bounded size, each a row group. Columns without one kind are text."""

    def __init__(self, file: BinaryIO, names: Sequence[str], kinds: dict[str, str]) -> None:
        if not names:
            raise Discard("Parquet needs at least one column")
        pa = arrow()
        types = {
            "boolean": pa.bool_(),
            "integer": pa.int64(),
            "number": pa.float64(),
            "date": pa.date32(),
            "datetime": pa.timestamp("us"),
            "moment": pa.timestamp("us", tz="UTC"),
        }
        self._schema = pa.schema([(name, types.get(kinds.get(name, ""), pa.string())) for name in names])
        self._is_text = {field.name: field.type == pa.string() for field in self._schema}
        self._writer = pa.parquet.ParquetWriter(file, self._schema, compression="snappy")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, values: dict[str, Any]) -> None:
        """Write a row."""
        row: dict[str, Any] = {}
        for name, is_text in self._is_text.items():
            value = values.get(name)
            if is_text and value is not None:
                value = cells.text(value)
                value.encode()  # a lone surrogate is a fault of this row, not of the batch
                self._bytes += len(value)
            row[name] = value
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS * 5 or self._bytes > max(BATCH_BYTES, LONGEST_ROW):
            self._flush()

    def close(self) -> None:
        """Write what is left and the end of the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            pa = arrow()
            try:
                self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            except pa.ArrowException as error:  # it is about a batch, and must not pass for a fault of a row
                raise Discard(f"the rows cannot be written as Parquet: {str(error)[:200]}") from None
        self._rows, self._bytes = [], 0
