"""JSON text that PostgreSQL can keep."""

from __future__ import annotations

import json
import re
from typing import Any

# An escaped U+0000: a backslash that is not itself escaped, and u0000.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def dumps(value: Any, *, limit: int) -> str:
    """``value`` as JSON text of at most ``limit`` bytes.

    Raises ValueError, saying what cannot be stored: a type that JSON has no form for, NaN or an
    infinity, U+0000, a lone surrogate, nesting too deep, or too many bytes.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except RecursionError:
        raise ValueError("it is nested too deeply or contains itself") from None
    except UnicodeEncodeError:
        raise ValueError("it contains a lone surrogate, which is not a character") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if size > limit:
        raise ValueError(f"it has {size} bytes of JSON, and at most {limit} are kept")
    if has_nul(text):
        raise ValueError("it contains the character U+0000, which PostgreSQL cannot keep")
    return text


def has_nul(text: str) -> bool:
    """Whether JSON text contains the character U+0000."""
    return "\\u0000" in text and _NUL.search(text) is not None


def printable(text: str, limit: int) -> str:
    """Text for a text column: NUL and lone surrogates replaced, the middle left out beyond ``limit``."""
    clean = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if len(clean) <= limit:
        return clean
    half = limit // 2
    return f"{clean[:half]}\n[... {len(clean) - 2 * half} characters left out ...]\n{clean[-half:]}"
