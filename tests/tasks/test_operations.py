"""Tables are checked, converted and added up, and archives packed and unpacked, whatever is in them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import struct
import zipfile
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pytest_django import Settings

from capataz.errors import Discard
from tasks import archives, files, operations, spreadsheets
from tests.tasks.test_files import MEGABYTE, measured, run

FORMATS = ["csv", "json", "ndjson", "parquet", "xlsx"]


@pytest.fixture(autouse=True)
def data(settings: Settings, tmp_path: Path) -> Path:
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT, settings.EXPORT_ROOT = tmp_path / "data", tmp_path / "exports"
    settings.DATA_ROOT.mkdir()
    return tmp_path / "data"


def convert(source: str, target: str, **params: Any) -> dict[str, Any]:
    return run("convert", source, outputPath=f"/data/{target}", overwrite=True, **params)


def rows_of(data: Path, name: str) -> list[dict[str, Any]]:
    """A table's rows, read by our own reader as JSON."""
    convert(name, "read.ndjson")
    return [json.loads(line) for line in (data / "read.ndjson").read_text().split("\n") if line]


ROWS = [
    {"id": 1, "name": "Ana", "price": 2.5, "paid": True, "note": None},
    {"id": 2, "name": '李 "x", y\nz', "price": -4.0, "paid": False, "note": "007"},
]


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_format_is_converted_to_every_other(data: Path, source: str, target: str) -> None:
    (data / "first.json").write_text(json.dumps(ROWS))
    convert("first.json", f"from.{source}")
    result = convert(f"from.{source}", f"to.{target}", inferTypes=True)
    assert (result["rows"], result["malformed"], result["outputFormat"]) == (2, 0, target)
    convert(f"to.{target}", "end.json", inferTypes=True)
    end = json.loads((data / "end.json").read_text())
    expected = [dict(row) for row in ROWS]
    if "csv" in (source, target):  # a column of text in which a cell is empty: CSV has no null
        for row in [*end, *expected]:
            row["note"] = str(row["note"] or "").lstrip("0")
    assert end == expected


def test_other_programs_read_what_is_written(data: Path) -> None:
    (data / "a.json").write_text(json.dumps(ROWS))
    convert("a.json", "a.xlsx")
    convert("a.json", "a.parquet")
    sheet = openpyxl.load_workbook(data / "a.xlsx").active
    assert [list(row) for row in sheet.iter_rows(values_only=True)] == [
        list(ROWS[0]), *[list(row.values()) for row in ROWS],
    ]  # fmt: skip
    table = pq.read_table(data / "a.parquet")
    assert table.to_pylist() == ROWS
    assert [str(field.type) for field in table.schema] == ["int64", "string", "double", "bool", "string"]


def test_times_keep_their_type_where_the_format_has_it_and_are_iso_text_elsewhere(data: Path) -> None:
    when = datetime(2025, 6, 29, 10, 30, 15)
    table = pa.table({"day": [date(2025, 6, 29)], "at": [when], "utc": [when.replace(tzinfo=UTC)]})
    pq.write_table(table, data / "t.parquet")
    assert rows_of(data, "t.parquet") == [
        {"day": "2025-06-29", "at": "2025-06-29T10:30:15", "utc": "2025-06-29T10:30:15+00:00"}
    ]
    convert("t.parquet", "t.xlsx")
    [_, row] = openpyxl.load_workbook(data / "t.xlsx").active.iter_rows(values_only=True)
    assert row == (datetime(2025, 6, 29), when, "2025-06-29T10:30:15+00:00")


def test_text_that_looks_like_a_number_stays_text_unless_inference_is_asked_for(data: Path) -> None:
    (data / "a.csv").write_text("zip,n,mixed\n00501,1,1\n10001,2,x\n")
    convert("a.csv", "plain.parquet")
    assert pq.read_table(data / "plain.parquet").to_pylist()[0] == {"zip": "00501", "n": "1", "mixed": "1"}
    convert("a.csv", "typed.parquet", inferTypes=True)
    assert pq.read_table(data / "typed.parquet").to_pylist()[0] == {"zip": "00501", "n": 1, "mixed": "1"}


def test_columns_that_come_late_and_kinds_that_change_are_known_before_the_first_row(data: Path) -> None:
    lines = [json.dumps({"a": number}) for number in range(3000)]
    lines += ['{"a": 1.5, "late": {"k": [1]}}', '{"a": 12345678901234567890, "late": null}']
    (data / "a.ndjson").write_text("\n".join(lines[:-1]))
    convert("a.ndjson", "a.parquet")
    assert str(pq.read_table(data / "a.parquet").schema.field("a").type) == "double"
    assert pq.read_table(data / "a.parquet").to_pylist()[-1] == {"a": 1.5, "late": '{"k": [1]}'}
    (data / "a.ndjson").write_text("\n".join(lines))
    convert("a.ndjson", "a.parquet")
    assert pq.read_table(data / "a.parquet").column("a").to_pylist()[-1] == "12345678901234567890"
    convert("a.ndjson", "a.csv")
    assert (data / "a.csv").read_text().splitlines()[0] == '"a","late"'


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "t": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
                "n": st.none() | st.integers(-(10**14), 10**14),
                "f": st.floats(allow_nan=False, allow_infinity=False, width=32),
                "b": st.booleans(),
            }
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["json", "ndjson", "parquet", "xlsx"]),
    st.sampled_from(["json", "ndjson", "parquet", "xlsx"]),
)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_trip_changes_nothing(data: Path, rows: list[Any], through: str, back: str) -> None:
    (data / "a.json").write_text(json.dumps(rows))
    convert("a.json", f"b.{through}", raw=True)
    convert(f"b.{through}", f"c.{back}", raw=True)
    assert rows_of(data, f"c.{back}") == rows


@given(
    st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9),
                      min_size=2, max_size=2), max_size=8)
)  # fmt: skip
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_survives_csv(data: Path, cells: list[list[str]]) -> None:
    rows = [dict(zip("ab", pair, strict=True)) for pair in cells]
    (data / "a.json").write_text(json.dumps(rows))
    convert("a.json", "a.csv", raw=True)
    assert rows_of(data, "a.csv") == rows


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", '=HYPERLINK("x")']


@pytest.mark.parametrize("target", ["csv", "xlsx"])
def test_cells_that_look_like_formulas_are_neutral_unless_raw_is_asked_for(data: Path, target: str) -> None:
    numbers = ["-5", "+3.2", "-1e5"]
    (data / "a.json").write_text(json.dumps([{"=k": text} for text in [*FORMULAS, *numbers]] + [{"=k": -7}]))
    convert("a.json", f"a.{target}")
    values = [str(row["'=k"]) for row in rows_of(data, f"a.{target}")]
    assert values == [f"'{text}" for text in FORMULAS] + [*numbers, "-7"]
    convert("a.json", f"raw.{target}", raw=True)
    assert [str(row["=k"]) for row in rows_of(data, f"raw.{target}")][: len(FORMULAS)] == FORMULAS
    if target == "xlsx":
        cells = [row[0].data_type for row in openpyxl.load_workbook(data / "raw.xlsx").active.iter_rows()]
        assert "f" not in cells


def test_a_bad_row_fails_with_its_place_or_is_skipped_and_counted(data: Path) -> None:
    (data / "a.csv").write_text("a,b\n1,2\n3\n4,5\n")
    with pytest.raises(Discard, match="row 3: 1 fields instead of 2"):
        convert("a.csv", "a.json")
    assert not (data / "a.json").exists()
    result = convert("a.csv", "a.json", onError="skip")
    assert (result["rows"], result["malformed"]) == (2, 1)
    assert result["errors"] == [{"line": 3, "error": "1 fields instead of 2"}]


def test_a_cell_that_the_format_cannot_hold_is_a_fault_of_its_row(data: Path) -> None:
    (data / "a.json").write_text(
        json.dumps([{"a": "\x01"}, {"a": "x" * 40_000}, {"a": "ok"}, {"a": "\ud800"}])
    )
    result = convert("a.json", "a.xlsx", onError="skip")
    assert (result["rows"], result["malformed"]) == (1, 3)
    assert convert("a.json", "a.parquet", onError="skip")["rows"] == 3


def test_a_conversion_may_be_repeated_and_replaces_nothing_unasked(data: Path) -> None:
    (data / "a.json").write_text(json.dumps(ROWS))
    for target in FORMATS:
        for _ in range(2):  # the very same bytes are what an earlier attempt left
            run("convert", "a.json", outputPath=f"/exports/b.{target}")
    (data / "a.json").write_text(json.dumps(ROWS[:1]))
    with pytest.raises(Discard, match="another file is there"):
        run("convert", "a.json", outputPath="/exports/b.csv")


def test_a_format_that_nothing_names_is_refused(data: Path) -> None:
    (data / "a").write_text("a\n1\n")
    with pytest.raises(Discard, match="suffix"):
        convert("a", "b.json")
    assert convert("a", "b", format="csv", outputFormat="json")["rows"] == 1


def test_a_sheet_is_full_at_its_limit(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreadsheets, "MOST_ROWS", 3)
    (data / "a.csv").write_text("a\n1\n2\n3\n")
    with pytest.raises(Discard, match="at most 3 rows"):
        convert("a.csv", "a.xlsx")


@pytest.mark.parametrize("kind", ["parquet", "xlsx"])
@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PAR1PAR1", b"PK\3\4" + b"x" * 100, b"x" * 5000])
def test_what_is_no_workbook_and_no_parquet_is_discarded(data: Path, kind: str, content: bytes) -> None:
    (data / f"a.{kind}").write_bytes(content)
    with pytest.raises(Discard):
        convert(f"a.{kind}", "a.json")


def test_a_workbook_that_is_a_bomb_is_discarded_before_it_is_opened(data: Path) -> None:
    with zipfile.ZipFile(data / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/sharedStrings.xml", b"<sst>" + b" " * (40 * MEGABYTE))
    with pytest.raises(Discard, match="more than 100 times"):
        convert("a.xlsx", "a.json")
    with zipfile.ZipFile(data / "a.xlsx", "w", zipfile.ZIP_STORED) as book:
        book.writestr("xl/sharedStrings.xml", b"<sst>" + b" " * (33 * MEGABYTE))
    with pytest.raises(Discard, match=r"sharedStrings\.xml in the workbook is larger"):
        convert("a.xlsx", "a.json")


def test_rules_are_checked_and_each_fault_names_row_and_column(data: Path) -> None:
    (data / "a.csv").write_text("id,age,kind\n1,30,a\n,200,b\nx,4,z\n")
    rules = [
        {"name": "id", "type": "integer", "required": True},
        {"name": "age", "type": "number", "max": 150},
        {"name": "kind", "oneOf": ["a", "b"]},
    ]
    result = run("validate", "a.csv", columns=rules)
    assert (result["valid"], result["rows"], result["badRows"], result["faults"]) == (False, 3, 2, 4)
    assert [(error["line"], error["column"]) for error in result["errors"]] == [
        (3, "id"), (3, "age"), (4, "id"), (4, "kind"),
    ]  # fmt: skip
    (data / "good.csv").write_text("id,age,kind\n1,30,a\n")
    assert run("validate", "good.csv", columns=rules)["valid"]
    with pytest.raises(Discard, match="no column 'size'"):
        run("validate", "a.csv", columns=[{"name": "size"}])


def test_columns_are_added_up_for_each_group(data: Path) -> None:
    (data / "a.csv").write_text("region,n,x\nnorth,1,0.1\nsouth,5,\nnorth,2,0.2\n")
    result = run("aggregate", "a.csv", columns=["n", "x"], groupBy=["region"], outputPath="/exports/g.ndjson")
    north, south = result["groups"]
    assert north["group"] == {"region": "north"} and north["rows"] == 2
    assert north["columns"]["n"] == {"count": 2, "sum": 3, "min": 1, "max": 2, "mean": 1.5}
    assert north["columns"]["x"]["sum"] == pytest.approx(0.3)
    assert south["columns"]["x"] == {"count": 0, "sum": 0, "min": None, "max": None, "mean": None}
    whole = run("aggregate", "a.csv", columns=["n"])
    assert whole["groups"] == [
        {"group": {}, "rows": 3, "columns": {"n": {"count": 3, "sum": 8, "min": 1, "max": 5, "mean": 8 / 3}}}
    ]
    with pytest.raises(Discard, match="row 2, column 'region': 'north' is not a number"):
        run("aggregate", "a.csv", columns=["region"])


def test_small_numbers_are_not_lost_in_a_large_sum(data: Path) -> None:
    (data / "a.csv").write_text("x\n1e16\n" + "0.1\n" * 1000 + "-1e16\n")
    assert run("aggregate", "a.csv", columns=["x"])["groups"][0]["columns"]["x"]["sum"] == pytest.approx(100)


def test_a_checksum_is_compared_with_what_is_expected(data: Path) -> None:
    (data / "a").write_bytes(b"x" * MEGABYTE)
    for algorithm in ("sha256", "sha512", "sha1", "md5", "blake2b"):
        digest = hashlib.new(algorithm, b"x" * MEGABYTE).hexdigest()
        assert run("checksum", "a", algorithm=algorithm, expected=digest.upper())["checksum"] == digest
    with pytest.raises(Discard, match="sha256 of /data/a is"):
        run("checksum", "a", expected="0" * 64)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zip"])
def test_what_is_packed_is_unpacked_to_the_same_bytes(data: Path, suffix: str) -> None:
    content = b"".join(b"line %d\n" % number for number in range(50_000))
    (data / "a.txt").write_bytes(content)
    packed = run("compress", "a.txt", outputPath=f"/data/a.txt.{suffix}")
    assert packed["bytes"] == len(content) > packed["packedBytes"]
    assert run("compress", "a.txt", outputPath=f"/data/a.txt.{suffix}") == packed
    target = "/processed/out" if suffix == "zip" else "/processed/out/a.txt"
    result = run("decompress", f"a.txt.{suffix}", outputPath=target)
    assert (result["bytes"], result["files"]) == (len(content), 1)
    assert (data.parent / "processed/out/a.txt").read_bytes() == content


def test_a_folder_is_packed_into_a_zip_without_links(data: Path) -> None:
    (data / "f/deep").mkdir(parents=True)
    (data / "f/a").write_text("1")
    (data / "f/deep/b").write_text("2")
    run("compress", "/data/f", outputPath="f.zip")
    assert zipfile.ZipFile(data.parent / "processed/f.zip").namelist() == ["a", "deep/b"]
    assert run("decompress", "/processed/f.zip", outputPath="/exports/f")["files"] == 2
    assert (data.parent / "exports/f/deep/b").read_text() == "2"


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_a_bomb_is_stopped_by_its_ratio(data: Path, module: Any) -> None:
    suffix = {"gzip": "gz", "bz2": "bz2", "lzma": "xz"}[module.__name__]
    (data / f"a.{suffix}").write_bytes(module.compress(bytes(50 * MEGABYTE)))
    with pytest.raises(Discard, match="more than 100 times"):
        run("decompress", f"a.{suffix}", outputPath="out")
    assert not (data.parent / "processed/out").exists()


def test_a_bomb_is_stopped_by_its_size(data: Path) -> None:
    (data / "a.gz").write_bytes(gzip.compress(hashlib.sha256(b"").digest() * 1000))
    with pytest.raises(Discard, match="more than 1,000 bytes"):
        run("decompress", "a.gz", outputPath="out", maxBytes=1000)


@pytest.mark.parametrize(
    "content", [b"", gzip.compress(b"abc", mtime=0)[:-4], b"nonsense", gzip.compress(b"a", mtime=0) + b"tail"]
)
def test_a_damaged_file_is_discarded(data: Path, content: bytes) -> None:
    (data / "a.gz").write_bytes(content)
    with pytest.raises(Discard, match="not valid gzip"):
        run("decompress", "a.gz", outputPath="out")


def test_gzip_of_several_members_is_unpacked_whole(data: Path) -> None:
    (data / "a.gz").write_bytes(gzip.compress(b"one", mtime=0) + gzip.compress(b"two", mtime=0) + bytes(10))
    run("decompress", "a.gz", outputPath="out")
    assert (data.parent / "processed/out").read_bytes() == b"onetwo"


def zipped(data: Path, *entries: tuple[str, bytes], mode: int = 0) -> None:
    with zipfile.ZipFile(data / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = mode << 16
            archive.writestr(entry, content)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "C:/x", "x\n"])
def test_an_entry_that_leads_out_of_the_folder_is_refused_with_all_others(data: Path, name: str) -> None:
    zipped(data, ("good", b"1"), (name, b"2"))
    with pytest.raises(Discard):
        run("decompress", "a.zip", outputPath="out")
    assert not (data.parent / "processed").exists()


def test_an_entry_that_is_a_link_is_refused(data: Path) -> None:
    zipped(data, ("link", b"/etc/passwd"), mode=0o120777)
    with pytest.raises(Discard, match="not a regular file"):
        run("decompress", "a.zip", outputPath="out")


def test_a_zip_that_unpacks_to_too_much_or_to_too_many_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(data, ("a", bytes(20 * MEGABYTE)))
    with pytest.raises(Discard, match="more than 100 times"):
        run("decompress", "a.zip", outputPath="out")
    monkeypatch.setattr(archives, "MOST_ENTRIES", 3)
    zipped(data, *[(f"{number}", b"x") for number in range(4)])
    with pytest.raises(Discard, match="more than 3 entries"):
        run("decompress", "a.zip", outputPath="out")


def test_entries_that_share_their_bytes_are_refused(data: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"x" * 1000)
        archive.writestr("b", b"x" * 1000)
    content = bytearray(buffer.getvalue())
    second = content.rfind(b"PK\1\2")
    content[second + 42 : second + 46] = struct.pack("<L", 0)
    (data / "a.zip").write_bytes(content)
    with pytest.raises(Discard, match=r"overlap|not a valid zip"):
        run("decompress", "a.zip", outputPath="out")


@given(st.binary(max_size=200), st.sampled_from(["gz", "bz2", "xz", "zip"]))
@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_unpacking_fail_otherwise_than_by_discarding(
    data: Path, content: bytes, suffix: str
) -> None:
    (data / f"a.{suffix}").write_bytes(content)
    with suppress(Discard):
        run("decompress", f"a.{suffix}", outputPath="/exports/a", overwrite=True)


def test_progress_rises_to_a_hundred_over_both_readings(data: Path) -> None:
    (data / "a.csv").write_text("a,b\n" + "1,2\n" * 60_000)
    seen: list[int] = []
    run("convert", "a.csv", seen, outputPath="a.parquet", inferTypes=True)
    assert seen == sorted(seen) and len(seen) > 8 and seen[-1] == 100 and min(seen) < 50


@pytest.mark.parametrize("target", ["parquet", "json"])
def test_a_large_table_takes_no_more_memory_than_a_small_one(data: Path, tmp_path: Path, target: str) -> None:
    row = b"2025-06-29,norte,casco,12,3.25," + b"x" * 170 + b"\n"
    header = b"date,region,product,quantity,price,note\n"
    (data / "small").write_bytes(header + row * 25_000)
    (data / "large").write_bytes(header + row * 150_000)
    params = {"format": "csv", "outputPath": f"/processed/out.{target}"}
    grown, result = measured(tmp_path, "convert", **params)
    assert (result["rows"], grown < 25_000) == (150_000, True), grown


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("convert", {}),
        ("convert", {"outputPath": "../x.csv"}),
        ("convert", {"outputPath": "/uploads/x.csv"}),
        ("convert", {"outputPath": "x.csv", "outputFormat": "html"}),
        ("aggregate", {"columns": [""]}),
        ("checksum", {"algorithm": "crc"}),
        ("compress", {"outputPath": "a.gz", "level": 10}),
        ("decompress", {"outputPath": "/data/../x"}),
        ("decompress", {"outputPath": "/data/", "format": "gzip"}),
        ("decompress", {"outputPath": "x", "maxBytes": operations.LARGEST_FILE + 1}),
        ("validate", {"columns": [{"name": "a", "type": "money"}]}),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_at_submission(operation: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        files.process.payload.validate_python({"filePath": "a", "operation": operation, "params": params})
