"""The repertoire: what single tasks of the demo do, and what each must leave behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from capataz.management.demo.letters import Letter
from capataz.management.demo.outputs import Duplicate, Lines, Output, Picture

PICTURES = (
    "image.jpg", "portrait.jpg", "turned.jpg", "panorama.jpg", "gray.jpg", "noise.png", "gradient.png",
    "transparent.png", "palette.png", "tiny.png", "photo.webp", "badge.webp", "animation.gif",
)  # fmt: skip
FORMATS = (".jpg", ".png", ".webp")
# Fit, width, height: what a shop, a gallery and a preview ask for.
BOXES = (
    ("contain", 300, 300),
    ("contain", 640, None),
    ("contain", None, 96),
    ("cover", 128, 128),
    ("cover", 240, 80),
    ("stretch", 200, 100),
)
# How many good rows each table has; some of them have broken ones too.
TABLES = {
    "file.csv": 50,
    "sales.csv": 300,
    "sensors.csv": 197,
    "unicode.csv": 8,
    "orders.json": 100,
    "events.jsonl": 100,
}
READABLE_NOTES = 5  # of the six, one has broken front matter
COPIED = ("/data/sales.csv", "/data/orders.json", "/uploads/file1.pdf", "/uploads/noise.png")
NAMES = ("Zoë", "José Ñandú", "李小龍", "Ольга", "Inés", "Ana")

FAILURES = 2  # of a task that is tried again and then completes
ALWAYS = 500
SLEEP = (2.0, 3.0)  # seconds: long enough to be taken over


@dataclass(frozen=True, kw_only=True)
class Act:
    """What one task does. ``options`` are fields of the API's submission beside type and data."""

    type: str
    data: dict[str, Any]
    end: str = "completed"  # the wire status in which it has to end
    leaves: Output | None = None
    sends: Letter | None = None
    options: dict[str, Any] = field(default_factory=dict)


# An act's number is its own, so that what it leaves can be told from everybody else's.
Maker = Callable[[int, random.Random], Act]


def picture(number: int, chance: random.Random) -> Act:
    """An image, resized and compressed."""
    source, suffix = chance.choice(PICTURES), chance.choice(FORMATS)
    fit, width, height = chance.choice(BOXES)
    sides = {name: side for name, side in (("width", width), ("height", height)) if side}
    path = f"/{chance.choice(('processed', 'exports'))}/images/{number:04}-{source.split('.')[0]}{suffix}"
    data = {
        "imagePath": f"/uploads/{source}",
        "operations": [
            {"type": "resize", "params": {"fit": fit, **sides}},
            {"type": "compress", "params": {"quality": chance.choice((0.6, 0.8, 90))}},
        ],
        "outputPath": path,
    }
    made = Picture(path, f"/uploads/{source}", fit, width, height)
    return Act(type="image_processing", data=data, leaves=made)


def table(number: int, chance: random.Random) -> Act:
    """A table, read and written as JSON lines."""
    source = chance.choice(list(TABLES))
    path = f"/exports/tables/{number:04}-{source.split('.')[0]}.jsonl"
    params = {"format": source.split(".")[1], "outputPath": path}
    data = {"filePath": f"/data/{source}", "operation": "parse", "params": params}
    return Act(type="file_processing", data=data, leaves=Lines(path, TABLES[source]))


def notes(number: int, chance: random.Random) -> Act:
    """The front matter of a folder of notes."""
    path = f"/processed/notes/{number:04}.jsonl"
    data = {"filePath": "/data/notes", "operation": "front_matter", "params": {"outputPath": path}}
    return Act(type="file_processing", data=data, leaves=Lines(path, READABLE_NOTES))


def copy(number: int, chance: random.Random) -> Act:
    """A file, copied."""
    source = chance.choice(COPIED)
    path = f"/processed/copies/{number:04}-{source.rpartition('/')[2]}"
    data = {"filePath": source, "operation": "copy", "params": {"outputPath": path}}
    return Act(type="file_processing", data=data, leaves=Duplicate(path, source))


def letter(number: int, chance: random.Random) -> Act:
    """An e-mail from a template, sometimes with an attachment."""
    name, attached = chance.choice(NAMES), chance.random() < 0.5
    sent = Letter(
        f"Welcome, {name} ({number:04})",
        f"reader{number}@example.com",
        "/uploads/file1.pdf" if attached else None,
    )
    data = {
        "to": [sent.to],
        "subject": sent.subject,
        "template": "welcome",
        "context": {"name": name, "link": "https://example.com/start"},
        "attachments": [sent.attachment] if sent.attachment else [],
    }
    return Act(type="email_notification", data=data, sends=sent)


def echo(number: int, chance: random.Random) -> Act:
    """A short task."""
    return Act(type="demo.echo", data={"message": {"number": number}})


def compute(number: int, chance: random.Random) -> Act:
    """A task that keeps a CPU busy for up to a few tenths of a second."""
    return Act(type="demo.compute", data={"n": chance.randint(18, 27)})


def retried(number: int, chance: random.Random) -> Act:
    """A task that fails twice and then completes."""
    return Act(type="demo.fail", data={"times": FAILURES})


def crashed(number: int, chance: random.Random) -> Act:
    """A task whose process dies once."""
    return Act(type="demo.crash", data={"times": 1, "signal": chance.choice(("SIGKILL", "SIGSEGV"))})


def sleeper(number: int, chance: random.Random) -> Act:
    """A task that lasts long enough to lose its worker."""
    return Act(type="demo.sleep", data={"seconds": round(chance.uniform(*SLEEP), 2)})


def broken_picture(number: int, chance: random.Random) -> Act:
    """An image that ends in its middle: discarded at the first attempt."""
    data = {
        "imagePath": "/uploads/broken.jpg",
        "operations": [{"type": "resize", "params": {"width": 100}}],
        "outputPath": f"/processed/images/{number:04}-broken.jpg",
    }
    return Act(type="image_processing", data=data, end="failed")


def broken_note(number: int, chance: random.Random) -> Act:
    """Front matter that is no YAML: discarded at the first attempt."""
    data = {"filePath": "/data/notes/broken.md", "operation": "front_matter"}
    return Act(type="file_processing", data=data, end="failed")


def exhausted(number: int, chance: random.Random) -> Act:
    """A task that fails more often than it may be tried."""
    return Act(type="demo.fail", data={"times": ALWAYS}, end="failed", options={"maxAttempts": 2})


def poison(number: int, chance: random.Random) -> Act:
    """A task that kills its process at every start: quarantined."""
    return Act(type="demo.crash", data={"times": ALWAYS}, end="failed")


def delayed(number: int, chance: random.Random) -> Act:
    """A task that has to wait for its time."""
    return Act(type="demo.echo", data={"message": "in time"}, options={"delay": 8000})


def withdrawn(number: int, chance: random.Random) -> Act:
    """A task that is cancelled before its time comes."""
    data = {"message": "never"}
    return Act(type="demo.echo", data=data, end="cancelled", options={"delay": 3_600_000})
