"""The sample inputs are the same everywhere, and the seed's own samples run on them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from PIL import Image
from pytest_django import Settings

from capataz.errors import Discard
from capataz.handlers import RunningTask, find
from capataz.services.smtp_sink import SmtpSink
from fixtures.make_samples import SAMPLES, make_samples

SEED_TASKS = json.loads((SAMPLES.parent / "seed_tasks.json").read_text())


@pytest.fixture(autouse=True)
def samples(settings: Settings, tmp_path: Path) -> Path:
    """Fresh samples under the roots."""
    settings.UPLOAD_ROOT, settings.PROCESSED_ROOT = tmp_path / "uploads", tmp_path / "processed"
    settings.DATA_ROOT, settings.EXPORT_ROOT = tmp_path / "data", tmp_path / "exports"
    make_samples(tmp_path)
    return tmp_path


@pytest.fixture
def sink(settings: Settings, tmp_path: Path) -> Iterator[SmtpSink]:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    sink = SmtpSink(tmp_path / "mail")
    sink.start()
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", sink.port
    yield sink
    sink.stop()


def run(type: str, data: dict[str, Any]) -> dict[str, Any]:
    """As the platform does it: through the row's JSON text."""
    handler = find(type)
    task = RunningTask(uuid.uuid4(), type, attempt=1, starts=1)
    result: dict[str, Any] = handler.function(task, handler.load(handler.parse(data)))
    json.dumps(result, allow_nan=False)
    return result


def test_samples_are_the_same_every_time(samples: Path, tmp_path: Path) -> None:
    again = make_samples(tmp_path / "again")
    assert len(again) == 27
    for path in again:
        assert path.read_bytes() == (samples / path.relative_to(tmp_path / "again")).read_bytes()


def test_another_seed_makes_other_samples(samples: Path, tmp_path: Path) -> None:
    make_samples(tmp_path / "other", seed=8)
    assert (tmp_path / "other/data/sales.csv").read_bytes() != (samples / "data/sales.csv").read_bytes()


def test_the_shipped_samples_are_complete_and_small(samples: Path) -> None:
    shipped = {path.relative_to(SAMPLES) for path in SAMPLES.rglob("*") if path.is_file()}
    made = {
        path.relative_to(samples) for root in ("uploads", "data") for path in (samples / root).rglob("*.*")
    }
    assert shipped == made
    assert sum((SAMPLES / path).stat().st_size for path in shipped) < 300_000


def test_shipped_samples_that_are_not_pictures_are_what_the_script_makes(samples: Path) -> None:
    # Pictures are left out: another version of Pillow may pack the same pixels otherwise.
    for path in SAMPLES.rglob("*"):
        if path.suffix in (".csv", ".json", ".jsonl", ".md", ".pdf"):
            assert path.read_bytes() == (samples / path.relative_to(SAMPLES)).read_bytes()


def test_the_seed_tasks_have_exactly_the_keys_of_the_seed() -> None:
    keys = {task["type"]: list(task["data"]) for task in SEED_TASKS}
    assert keys == {
        "email_notification": ["to", "subject", "body", "template", "attachments"],
        "image_processing": ["imagePath", "operations", "outputPath"],
        "file_processing": ["filePath", "operation", "params"],
        "data_export": ["query", "format", "destination"],
    }


@pytest.mark.django_db
def test_the_seed_tasks_run(samples: Path, sink: SmtpSink) -> None:
    User.objects.create(username="ana", email="ana@example.com")
    results = {task["type"]: run(**task) for task in SEED_TASKS}
    assert results["image_processing"] | {"bytes": 0} == {
        "outputPath": "/processed/image-thumb.jpg",
        "width": 300,
        "height": 225,
        "bytes": 0,
        "format": "JPEG",
    }
    with Image.open(samples / "processed/image-thumb.jpg") as thumbnail:
        assert thumbnail.size == (300, 225)
    assert (results["file_processing"]["rows"], results["file_processing"]["malformed"]) == (50, 0)
    assert results["data_export"]["rows"] == 1
    header, row = (samples / "exports/users.csv").read_text().splitlines()
    assert header == '"id","username","email","date_joined"' and '"ana","ana@example.com"' in row
    (message,) = sink.messages()
    assert (message["To"], message["Subject"]) == ("recipient@example.com", "Subject line")
    (attachment,) = message.iter_attachments()
    assert attachment.get_content() == (samples / "uploads/file1.pdf").read_bytes()


@pytest.mark.django_db
def test_the_seed_tasks_may_run_twice(samples: Path, sink: SmtpSink) -> None:
    for _ in range(2):
        for task in SEED_TASKS:
            run(**task)


def test_every_picture_can_be_processed_except_the_broken_one(samples: Path) -> None:
    pictures = sorted(path for path in (samples / "uploads").iterdir() if path.suffix != ".pdf")
    assert len(pictures) == 14
    for path in pictures:
        job = {
            "imagePath": f"/uploads/{path.name}",
            "operations": [{"type": "resize", "params": {"width": 64, "height": 64}}],
            "outputPath": f"/processed/{path.name}.webp",
        }
        if path.name == "broken.jpg":
            with pytest.raises(Discard, match="truncated"):
                run("image_processing", job)
        else:
            assert max(run("image_processing", job)[side] for side in ("width", "height")) <= 64


@pytest.mark.parametrize(
    ("name", "rows", "malformed"),
    [
        ("file.csv", 50, 0),
        ("sales.csv", 300, 0),
        ("sensors.csv", 197, 3),
        ("unicode.csv", 8, 0),
        ("orders.json", 100, 0),
        ("events.jsonl", 100, 2),
    ],
)
def test_every_table_can_be_parsed(name: str, rows: int, malformed: int) -> None:
    job = {"filePath": name, "operation": "parse", "params": {"format": name.partition(".")[2]}}
    result = run("file_processing", job)
    assert (result["rows"], result["malformed"]) == (rows, malformed)


def test_the_notes_have_one_broken_file() -> None:
    result = run("file_processing", {"filePath": "/data/notes", "operation": "front_matter"})
    assert [item["path"] for item in result["failed"]] == ["/data/notes/broken.md"]
    assert len(result["successful"]) == 5
