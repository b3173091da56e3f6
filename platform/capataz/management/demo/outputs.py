"""Outputs: the files that tasks have to leave, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

ROOTS = ("processed", "exports")


class Output(Protocol):
    """A file that has to be there. Paths are as clients name them, such as ``/processed/a.jpg``."""

    @property
    def path(self) -> str:
        """Where it has to be."""

    def fault(self, place: Path) -> str:
        """What is wrong with it in this data directory, or nothing. May raise OSError and ValueError."""


@dataclass(frozen=True)
class Picture:
    """An image of the size that was asked for. A side of None was left open."""

    path: str
    source: str
    fit: str
    width: int | None
    height: int | None

    def fault(self, place: Path) -> str:
        """Whether Pillow can read all of it, and whether its size is right."""
        with Image.open(found(place, self.path)) as image:
            image.load()
            size = image.size
        wanted = self._wanted(place)
        # A pixel of rounding: the JPEG decoder may have halved the source before it was resized.
        if all(abs(is_ - should) <= 1 for is_, should in zip(size, wanted, strict=True)):
            return ""
        return f"is {size[0]} x {size[1]}, not {wanted[0]} x {wanted[1]}"

    def _wanted(self, place: Path) -> tuple[int, int]:
        if self.fit != "contain" and self.width and self.height:
            return self.width, self.height
        with Image.open(found(place, self.source)) as image:
            width, height = ImageOps.exif_transpose(image).size
        scale = min(1, (self.width or width) / width, (self.height or height) / height)
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Lines:
    """JSON, one object a line."""

    path: str
    count: int

    def fault(self, place: Path) -> str:
        """Whether every line is an object, and whether there are as many as the source has rows."""
        lines = found(place, self.path).read_text().splitlines()
        if not all(isinstance(json.loads(line), dict) for line in lines):
            return "has lines that are not objects"
        return "" if len(lines) == self.count else f"has {len(lines)} lines, not {self.count}"


@dataclass(frozen=True)
class Duplicate:
    """The same bytes as in another file."""

    path: str
    source: str

    def fault(self, place: Path) -> str:
        """Whether it differs."""
        same = digest(found(place, self.path)) == digest(found(place, self.source))
        return "" if same else f"differs from {self.source}"


def faults(outputs: Iterable[Output], place: Path) -> dict[str, str]:
    """What is wrong with these outputs: path to fault. What is right is left out."""
    return {output.path: fault for output in outputs if (fault := _fault(output, place))}


def strangers(outputs: Iterable[Output], place: Path) -> list[str]:
    """Files that no task should have written. Hidden ones do not count: a killed writer leaves them."""
    expected = {output.path for output in outputs}
    written = {
        f"/{path.relative_to(place)}"
        for root in ROOTS
        for path in (place / root).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    return sorted(written - expected)


def found(place: Path, path: str) -> Path:
    """The real file behind a client's path."""
    return place / path.lstrip("/")


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fault(output: Output, place: Path) -> str:
    try:
        return output.fault(place)
    except FileNotFoundError:
        return "is not there"
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot be read: {error}"
