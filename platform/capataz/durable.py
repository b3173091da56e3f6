"""Files and folders that appear under their name complete and on disk, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# What is being made has a name that begins so. A crash leaves it behind.
UNFINISHED = ".new-"
# Seconds after which nobody can still be at it: no handler may run for longer than a day.
ABANDONED = 2 * 86_400


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that only its owner may read. Raises OSError, with nothing left, if it cannot."""
    make_folder(path.parent)
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(new).rename(path)
        sync(path.parent)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that only its owner may enter. Its files have to be on disk when the block ends."""
    make_folder(path.parent)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=UNFINISHED))  # mode 0700
    try:
        yield new
        sync(new)
        new.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; one that is there stays as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Make what this file holds, or what this folder names, outlive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear(folder: Path) -> None:
    """Delete what a crash has left unfinished here."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
