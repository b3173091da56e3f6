"""Named statements, where the database does the work: one file each, read once."""

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def statement(name: str) -> str:
    """The text of ``sql/<name>.sql``. Raises FileNotFoundError if there is no such statement."""
    return (_FOLDER / f"{name}.sql").read_text()
