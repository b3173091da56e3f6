"""The cause of a death, by which dead letters are grouped: the same for the same fault of the same code."""

from __future__ import annotations

import re
from pathlib import PurePath

LONGEST = 160

_EXCEPTION = re.compile(r"([A-Za-z_]\w*)(?::|$)")
_FRAME = re.compile(r'^ *File "(.+)", line \d+, in (\S+)', re.MULTILINE)


def cause_of(error: str | None, traceback: str | None) -> str:
    """Such as ``ValueError in convert (tasks/files.py)``: the exception's class and the innermost frame.

    What was not raised is known by its words, with every number left out.
    """
    text = error or "unknown"
    named = _EXCEPTION.match(text)
    what = named[1] if named else re.sub(r"\d+", "#", text.splitlines()[0])
    frames = _FRAME.findall(traceback or "")
    if not frames:
        return what[:LONGEST]
    file, function = frames[-1]
    return f"{what} in {function} ({'/'.join(PurePath(file).parts[-2:])})"[:LONGEST]
