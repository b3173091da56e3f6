"""Files are parsed, copied and searched for front matter, however large or broken they are."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pytest_django import Settings

from capataz.errors import Discard
from capataz.handlers import RunningTask
from tasks import files

MEGABYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def data(settings: Settings, tmp_path: Path) -> Path:
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT, settings.EXPORT_ROOT = tmp_path / "data", tmp_path / "exports"
    settings.DATA_ROOT.mkdir()
    return tmp_path / "data"


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    return tmp_path / "processed"


def run(operation: str, path: str, seen: list[int] | None = None, **params: Any) -> dict[str, Any]:
    seen = [] if seen is None else seen
    task = RunningTask(uuid.uuid4(), "file_processing", 1, 1, lambda percent, message: seen.append(percent))
    job = files.process.payload.validate_python({"filePath": path, "operation": operation, "params": params})
    result: dict[str, Any] = files.process.function(task, job)
    json.dumps(result, allow_nan=False)
    return result


def parse(data: Path, content: bytes | str, file_format: str = "csv", **params: Any) -> dict[str, Any]:
    (data / "table").write_bytes(content.encode() if isinstance(content, str) else content)
    return run("parse", "table", format=file_format, **params)


def column(result: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(column for column in result["columns"] if column["name"] == name)
    return found


def test_the_seed_sample_is_parsed(data: Path) -> None:
    (data / "file.csv").write_text("id,name,price\n1,Ana,2.5\n2,,4\n")
    assert run("parse", "/data/file.csv", format="csv") == {
        "filePath": "/data/file.csv",
        "format": "csv",
        "rows": 2,
        "malformed": 0,
        "errors": [],
        "columns": [
            {"name": "id", "type": "integer", "empty": 0, "min": 1, "max": 2, "mean": 1.5},
            {"name": "name", "type": "string", "empty": 1},
            {"name": "price", "type": "number", "empty": 0, "min": 2.5, "max": 4, "mean": 3.25},
        ],
        "sample": [{"id": "1", "name": "Ana", "price": "2.5"}, {"id": "2", "name": "", "price": "4"}],
    }


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", "+3"], "integer"),
        (["1", "2.5", "-1e3", ".5"], "number"),
        (["00123", "04567"], "string"),
        (["1234567890123456789", "1"], "string"),
        (["nan", "inf"], "string"),
        (["1e999", "1"], "string"),
        (["١٢", "1"], "string"),
        (["true", "FALSE"], "boolean"),
        (["2025-06-29", "2025-01-01"], "date"),
        (["2025-06-29T10:30:45.123Z", "2025-06-29"], "datetime"),
        (["", ""], "empty"),
        (["1", "x"], "string"),
    ],
)
def test_the_type_of_a_column_is_inferred(data: Path, cells: list[str], kind: str) -> None:
    assert column(parse(data, "a,b\n" + "".join(f"{cell},x\n" for cell in cells)), "a")["type"] == kind


def test_malformed_rows_are_counted_and_the_first_twenty_shown_with_their_lines(data: Path) -> None:
    lines = ["a,b"] + [f"{n},{n}" if n % 2 else f"{n}" for n in range(1, 101)]
    result = parse(data, "\n".join(lines))
    assert (result["rows"], result["malformed"], len(result["errors"])) == (50, 50, 20)
    assert result["errors"][0] == {"line": 3, "error": "1 fields instead of 2"}
    assert [error["line"] for error in result["errors"]] == list(range(3, 43, 2))


def test_a_line_that_is_not_text_does_not_stop_the_others(data: Path) -> None:
    result = parse(data, b"a,b\n1,2\n\xff,3\n4,\0\n5,6\n" + b"x" * (2 * MEGABYTE) + b"\n7,8\n")
    assert result["rows"] == 3
    assert [error["line"] for error in result["errors"]] == [3, 4, 6]
    assert "utf-8" in result["errors"][0]["error"]
    assert "NUL" in result["errors"][1]["error"]
    assert "longer than" in result["errors"][2]["error"]


def test_quoted_cells_may_hold_lines_and_a_quote_that_never_closes_is_malformed(data: Path) -> None:
    result = parse(data, 'a,b\n"1\n2",x\n3,"y\n4,z\n')
    assert result["rows"] == 1 and result["sample"] == [{"a": "1\n2", "b": "x"}]
    assert [error["line"] for error in result["errors"]] == [4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_guessed_from_the_header(data: Path, delimiter: str) -> None:
    result = parse(data, f"a{delimiter}b c\n1{delimiter}2\n")
    assert [column["name"] for column in result["columns"]] == ["a", "b c"]


def test_columns_without_a_name_or_with_the_same_are_told_apart(data: Path) -> None:
    names = [column["name"] for column in parse(data, "a,,a,a_2\n1,2,3,4\n")["columns"]]
    assert names == ["a", "column_2", "a_2", "a_2_2"]


def test_byte_order_marks_and_encodings(data: Path) -> None:
    assert parse(data, "\ufeffa,b\n1,2\n")["sample"] == [{"a": "1", "b": "2"}]
    assert parse(data, "a\nñ\n".encode("cp1252"), encoding="cp1252")["sample"] == [{"a": "ñ"}]
    with pytest.raises(Discard, match="UTF-16"):
        parse(data, "a,b\n1,2\n".encode("utf-16"))


@pytest.mark.parametrize("content", ["", "a,b\n", "\n\n"])
def test_a_table_without_rows_has_none(data: Path, content: str) -> None:
    assert parse(data, content)["rows"] == 0


def test_json_lines_are_parsed_with_their_own_types(data: Path) -> None:
    lines = ['{"a": 1, "b": "2"}', '{"a": 2.5, "c": {"d": 1}}', "", "[1]", "{", '{"a": NaN}', '{"a": 1e999}']
    result = parse(data, "\n".join(lines), "jsonl")
    assert (result["rows"], result["malformed"]) == (2, 4)
    assert [error["line"] for error in result["errors"]] == [4, 5, 6, 7]
    assert column(result, "a") == {
        "name": "a",
        "type": "number",
        "empty": 0,
        "min": 1,
        "max": 2.5,
        "mean": 1.75,
    }
    assert column(result, "b") == {"name": "b", "type": "string", "empty": 1}
    assert column(result, "c")["type"] == "object"


@pytest.mark.parametrize(
    "content", ["[[" * 200_000, '{"a":' * 200_000, "9" * 10_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_json_that_is_meant_to_hurt_is_only_malformed(data: Path, content: str) -> None:
    assert parse(data, content + '\n{"a": 1}\n', "jsonl")["rows"] == 1
    if not content.startswith("9"):
        with pytest.raises(Discard):
            parse(data, content, "json")


def test_nesting_just_within_what_python_reads_can_be_written_too(data: Path) -> None:
    for depth in (100, 500, 800, 900, 950, 1000):
        deep = '{"a": ' + "[" * depth + "]" * depth + "}"
        result = parse(data, f"{deep}\n", "jsonl", outputPath=f"{depth}.jsonl")
        assert result["rows"] + result["malformed"] == 1


def test_a_json_array_is_read_item_by_item_across_pieces(data: Path) -> None:
    rows = [{"n": number, "text": "ñ\n" * (number % 700)} for number in range(2_000)]
    for indent in (None, 2):
        result = parse(data, json.dumps(rows, ensure_ascii=False, indent=indent), "json")
        assert result["rows"] == 2_000
        assert column(result, "n") | {"mean": 0} == {
            "name": "n", "type": "integer", "empty": 0, "min": 0, "max": 1999, "mean": 0,
        }  # fmt: skip


def test_json_items_that_are_no_objects_are_malformed_and_one_object_is_a_row(data: Path) -> None:
    result = parse(data, '[{"a": 1},\n 2,\n [3], 12345]', "json")
    assert (result["rows"], result["malformed"]) == (1, 3)
    assert [error["line"] for error in result["errors"]] == [2, 3, 3]
    assert parse(data, ' {"a": 1} ', "json")["rows"] == 1
    assert parse(data, "[ ]", "json")["rows"] == 0


@pytest.mark.parametrize(
    "content", ["", "[", "[1", "[1,", "[1 2]", "[1]x", "{", "[1,]", b'["\xff"]', "[nul]"]
)
def test_broken_json_is_discarded_with_the_line(data: Path, content: str | bytes) -> None:
    with pytest.raises(Discard, match="not valid JSON at or after line 1"):
        parse(data, content, "json")


def test_markdown_sections_are_rows(data: Path) -> None:
    text = "---\ntitle: x\n---\nintro\n# One #\ntwo words\n```\n# code\n```\n## C#\n"
    result = parse(data, text, "markdown")
    assert result["sample"] == [
        {"level": 0, "title": "", "line": 1, "words": 1},
        {"level": 1, "title": "One", "line": 5, "words": 6},
        {"level": 2, "title": "C#", "line": 10, "words": 0},
    ]


def test_a_heading_of_a_million_spaces_takes_no_time(data: Path) -> None:
    started = time.monotonic()
    parse(data, "# a" + " " * 1_000_000 + "x", "markdown")
    parse(data, "# a" + " #" * 500_000, "markdown")
    assert time.monotonic() - started < 2


def test_rows_can_be_written_as_json_lines(data: Path, processed: Path) -> None:
    result = parse(data, "a,ñ\n1,李\nbad\n2,x\n", outputPath="/processed/t.jsonl")
    assert result["outputPath"] == "/processed/t.jsonl"
    lines = (processed / "t.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": "1", "ñ": "李"}, {"a": "2", "ñ": "x"}]


def test_what_postgres_cannot_store_never_reaches_the_result(data: Path, processed: Path) -> None:
    result = parse(data, r'{"\u0000k": "\ud800 \u0000", "l": ["\u0000"]}', "jsonl", outputPath="o.jsonl")
    text = json.dumps(result)
    assert "\\u0000" not in text and "\\ud800" not in text
    assert json.loads((processed / "o.jsonl").read_bytes()) == {"\0k": "\ud800 \0", "l": ["\0"]}


def test_a_result_stays_small_whatever_the_file(data: Path) -> None:
    header = ",".join(f"{number}" + "\N{GRINNING FACE}" * 500 for number in range(500))
    row = ",".join(["\N{GRINNING FACE}" * 400] * 500)
    result = parse(data, f"{header}\n{row}\n{row}\n")
    assert result["rows"] == 0 or len(json.dumps(result)) < 1_000_000
    assert len(json.dumps(parse(data, header + "\n" + "x," * 499 + "x\n"))) < 1_000_000


def test_a_file_with_thousands_of_columns_is_no_table(data: Path) -> None:
    for content, file_format in (("a," * 400_000, "csv"), (json.dumps(dict.fromkeys(range(501))), "jsonl")):
        with pytest.raises(Discard, match="500 columns"):
            parse(data, content, file_format)
    with pytest.raises(Discard, match="500 columns"):
        parse(data, ",".join(map(str, range(501))) + "\n" + "1," * 500 + "1\n")


@given(st.binary(max_size=300))
@hypothesis_settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_no_bytes_make_a_parser_fail_otherwise_than_by_discarding(data: Path, content: bytes) -> None:
    for file_format in ("csv", "json", "jsonl", "markdown"):
        with suppress(Discard):
            parse(data, content, file_format)


MEASURED = """
import json, resource, sys, uuid
from pathlib import Path
from django.conf import settings
root = Path(sys.argv[1])
settings.configure(
    CAPATAZ_DEMO=False, CAPATAZ_QUERIES=None, ENCRYPTION_KEYS=None,
    DATA_ROOT=root / "data", PROCESSED_ROOT=root / "processed",
)
from capataz.handlers import RunningTask
from tasks import files
task = RunningTask(uuid.uuid4(), "file_processing", 1, 1)
def run(path):
    job = json.loads(sys.argv[2]) | {"filePath": path}
    return files.process.function(task, files.process.payload.validate_python(job))
run("small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = run("large")
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, result]))
"""


def measured(root: Path, operation: str, **params: Any) -> tuple[int, dict[str, Any]]:
    """By how many kB the large file raises the memory of a process of its own, and the result."""
    job = json.dumps({"operation": operation, "params": params | {"overwrite": True}})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEASURED, str(root), job]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    kilobytes, result = json.loads(output)
    return kilobytes, result


def test_fifty_megabytes_of_csv_take_no_more_memory_than_a_few_rows(data: Path, tmp_path: Path) -> None:
    row = b"2025-06-29,norte,casco,12,3.25," + b"x" * 70 + b"\n"
    header = b"date,region,product,quantity,price,note\n"
    count = 50 * MEGABYTE // len(row) + 1
    (data / "small").write_bytes(header + row * 2_000)
    with (data / "large").open("wb") as file:
        file.write(header)
        for _ in range(count // 1000):
            file.write(row * 1000)
    assert (data / "large").stat().st_size > 50 * MEGABYTE - 200_000
    grown, result = measured(tmp_path, "parse", format="csv", outputPath="out.jsonl")
    assert result["rows"] == count // 1000 * 1000
    assert column(result, "quantity")["mean"] == 12
    assert grown < 10_000


def test_fifty_megabytes_of_json_and_a_copy_neither(data: Path, tmp_path: Path) -> None:
    item = json.dumps({"n": 1, "text": "x" * 5_000})
    (data / "small").write_text(f"[{', '.join([item] * 20)}]")
    (data / "large").write_text(f"[{', '.join([item] * 10_500)}]")
    grown, result = measured(tmp_path, "parse", format="json")
    assert (result["rows"], grown < 10_000) == (10_500, True)
    grown, result = measured(tmp_path, "copy", outputPath="copy")
    assert (result["bytes"], grown < 10_000) == ((data / "large").stat().st_size, True)


def test_a_copy_is_byte_for_byte_and_reports_progress(data: Path, processed: Path) -> None:
    content = os.urandom(5 * MEGABYTE + 17)
    seen: list[int] = []
    (data / "a.bin").write_bytes(content)
    result = run("copy", "/data/a.bin", seen, outputPath="/processed/deep/b.bin")
    digest = hashlib.sha256(content).hexdigest()
    assert result == {"outputPath": "/processed/deep/b.bin", "bytes": len(content), "sha256": digest}
    assert (processed / "deep" / "b.bin").read_bytes() == content
    assert len(seen) > 4 and seen == sorted(seen) and seen[-1] == 100


def test_a_missing_file_is_tried_again_and_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/data/later"):
        run("copy", "later", outputPath="/exports/out")
    assert not (tmp_path / "exports" / "out").exists()


def test_front_matter_of_one_file(data: Path) -> None:
    (data / "a.md").write_text("---\ntitle: Ñ\ndate: 2025-03-01\ntags: [a, b]\n---\nText\n")
    result = run("front_matter", "/data/a.md")
    assert result["successful"] == [
        {"path": "/data/a.md", "metadata": {"title": "Ñ", "date": "2025-03-01", "tags": ["a", "b"]}}
    ]


def test_front_matter_of_a_folder_has_each_files_error_beside_its_path(data: Path) -> None:
    notes = {
        "good": "---\na: 1\n---\n",
        "none": "just text",
        "broken": "---\na: [\n---\n",
        "open": "---\na: 1\n",
        "deep": "---\na: " + "[" * 100_000 + "\n---\n",
        "code": "---\na: !!python/object/apply:os.system ['id']\n---\n",
        "bomb": "---\na: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
            for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "---\n",
        "cycle": "---\na: &a [*a]\n---\n",
    }
    for name, text in notes.items():
        (data / f"{name}.md").write_text(text)
    (data / "link.md").symlink_to("good.md")
    os.mkfifo(data / "pipe.md")
    (data / "latin.md").write_bytes(b"---\na: \xff\n---\n")
    result = run("front_matter", "/data")
    assert {item["path"] for item in result["successful"]} == {"/data/good.md", "/data/none.md"}
    errors = {item["path"].split("/")[-1]: item["error"] for item in result["failed"]}
    assert set(errors) == {
        "bomb.md", "broken.md", "code.md", "cycle.md", "deep.md", "latin.md", "link.md", "open.md", "pipe.md",
    }  # fmt: skip
    assert all(errors.values())
    assert "not closed" in errors["open.md"] and "symbolic link" in errors["link.md"]
    assert result["files"] == 11


def test_a_pattern_or_a_glob_chooses_the_files(data: Path) -> None:
    (data / "deep").mkdir()
    for name in ("a1.md", "a2.md", "b.md", "deep/a3.md", "c.markdown"):
        (data / name).write_text("x")
    assert run("front_matter", "/data/a*.md")["files"] == 2
    assert run("front_matter", "/data/")["files"] == 4
    assert run("front_matter", "/data", recursive=False)["files"] == 3
    assert run("front_matter", "/data", pattern="*.markdown")["files"] == 1


def test_a_single_broken_file_is_discarded_and_a_missing_one_is_not(data: Path) -> None:
    (data / "a.md").write_text("---\na: [\n---\n")
    with pytest.raises(Discard, match=r"/data/a\.md"):
        run("front_matter", "a.md")
    with pytest.raises(FileNotFoundError):
        run("front_matter", "b.md")
    with pytest.raises(FileNotFoundError):
        run("front_matter", "folder/")


def test_more_documents_than_a_result_holds_are_counted_and_written(data: Path, processed: Path) -> None:
    for number in range(60):
        (data / f"{number:02}.md").write_text(
            "---\ntext: " + "x" * 1_900 + f"\nlist: {list(range(1000))}\n---\n"
        )
    result = run("front_matter", "/data", outputPath="all.jsonl")
    assert result["files"] == 60
    assert result["omitted"] == 60 - len(result["successful"]) > 0
    assert len(json.dumps(result)) < 500_000
    assert len((processed / "all.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize(
    "job",
    [
        {"operation": "parse", "filePath": "../x", "params": {"format": "csv"}},
        {"operation": "parse", "filePath": "/etc/passwd", "params": {"format": "csv"}},
        {"operation": "parse", "filePath": "a", "params": {"format": "xml"}},
        {"operation": "parse", "filePath": "a", "params": {}},
        {"operation": "parse", "filePath": "a", "params": {"format": "csv", "outputPath": "/uploads/a"}},
        {"operation": "parse", "filePath": "a", "params": {"format": "csv", "encoding": "zlib"}},
        {"operation": "copy", "filePath": "a", "params": {}},
        {"operation": "copy", "filePath": "a", "params": {"outputPath": "/processed/../../x"}},
        {"operation": "front_matter", "filePath": "/data", "params": {"pattern": "../*"}},
        {"operation": "delete", "filePath": "a", "params": {}},
    ],
)
def test_a_job_that_makes_no_sense_is_refused_at_submission(job: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        files.process.payload.validate_python(job)
