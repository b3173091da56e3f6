"""Directories that an unprivileged user can reach when the home or our binaries are hidden from it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from capataz.services.errors import StartFailed

FOR_DATA = ("/var/lib/capataz", "/srv/capataz")
FOR_COPIES = ("/var/cache/capataz", *FOR_DATA)


def shared_place(candidates: tuple[str, ...]) -> Path:
    """The first of these directories that is ours, or can be made: others may enter, only we may write.

    Raises StartFailed if there is none.
    """
    for name in candidates:
        path = Path(name)
        try:
            path.mkdir(mode=0o755, exist_ok=True)
        except OSError:
            continue
        if _is_ours(path):
            return path
    raise StartFailed(f"None of {', '.join(candidates)} can be written to.")


def new_directory(parent: Path, prefix: str) -> Path:
    """A new directory with a name of its own in which others may walk but not look around."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o711)
    return path


def _is_ours(path: Path) -> bool:
    # Somebody else may have made it first, and could put a program of their own into it.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return False
    path.chmod(0o755)
    return True
