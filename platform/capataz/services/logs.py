"""The logs that the supervisor's processes have left: whether they are bounded, and what is too old."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from capataz.services.output import LINE_BYTES, LOG_BYTES, LOG_FILES

ROTATED = re.compile(r"(?P<name>.+\.log)\.(?P<number>\d+)")


def tidy(folder: Path, days: float) -> dict[str, Any]:
    """Delete rotated logs that are older than ``days``, or one too many; returns what was found.

    ``tooLarge`` names the files that rotation should have cut: nobody rotates them. Where there is no such
    folder, as in a container whose logs somebody else keeps, there is nothing to do.
    """
    found: dict[str, Any] = {"files": 0, "bytes": 0, "deleted": 0, "tooLarge": []}
    for path in sorted(folder.glob("*.log*")):
        try:
            about = path.stat()
            rotated = ROTATED.fullmatch(path.name)
            if rotated and _is_useless(int(rotated["number"]), about.st_mtime, days):
                path.unlink()
                found["deleted"] += 1
                continue
        except FileNotFoundError:  # rotated just now
            continue
        found["files"] += 1
        found["bytes"] += about.st_size
        if about.st_size > LOG_BYTES + LINE_BYTES:
            found["tooLarge"].append(path.name)
    return found


def _is_useless(number: int, changed: float, days: float) -> bool:
    return number > LOG_FILES or time.time() - changed > days * 86_400
