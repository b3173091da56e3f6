"""Logs: what is old goes, what is current stays, and a log that nobody rotates is named."""

import os
import time
from pathlib import Path

from capataz.services.logs import tidy
from capataz.services.output import LOG_BYTES, Output

DAY = 86_400


def log(folder: Path, name: str, *, days: float = 0, size: int = 10) -> None:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_rotated_logs_go_when_they_are_old_or_one_too_many_and_nothing_else_does(tmp_path: Path) -> None:
    log(tmp_path, "web.log", days=100)
    log(tmp_path, "web.log.1", days=13)
    log(tmp_path, "web.log.2", days=15)
    log(tmp_path, "web.log.4")
    log(tmp_path, "notes.txt", days=100)
    assert tidy(tmp_path, days=14) == {"files": 2, "bytes": 20, "deleted": 2, "tooLarge": []}
    assert {path.name for path in tmp_path.iterdir()} == {"web.log", "web.log.1", "notes.txt"}


def test_a_log_that_was_not_rotated_is_named(tmp_path: Path) -> None:
    log(tmp_path, "postgres.log", size=2 * LOG_BYTES)
    assert tidy(tmp_path, days=14)["tooLarge"] == ["postgres.log"]


def test_what_the_supervisor_writes_is_never_too_large(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    output = Output(tmp_path, console=os.open(os.devnull, os.O_WRONLY))
    output.follow("web", os.fdopen(readable, "rb"))
    with os.fdopen(writable, "wb") as pipe:
        for _ in range(600):
            pipe.write(b"x" * 60_000 + b"\n")
    output.close(seconds=240)
    found = tidy(tmp_path, days=14)
    assert (found["files"], found["tooLarge"]) == (4, [])


def test_where_there_are_no_logs_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert tidy(tmp_path / "logs", days=14) == {"files": 0, "bytes": 0, "deleted": 0, "tooLarge": []}
