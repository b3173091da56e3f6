"""The home of one installation: where its data lies, and what runs in it now.

Settings import this before anything else, so it needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Process:
    """One process of the running platform."""

    name: str
    pid: int


@dataclass(frozen=True)
class Run:
    """The platform that runs in a home, as its supervisor wrote it to ``run.json``."""

    pid: int  # the supervisor's
    started: int  # when the supervisor started, see start_time()
    web: str
    database_url: str
    redis_url: str
    flower: str | None = None
    processes: list[Process] = field(default_factory=list)


def home() -> Path:
    """The home: CAPATAZ_HOME, else ``.capataz`` in the checkout, else in the current directory.

    Absolute. It may not exist yet.
    """
    named = os.environ.get("CAPATAZ_HOME")
    if named:
        return Path(named).absolute()
    checkout = (REPOSITORY / "manage.py").is_file()
    return (REPOSITORY if checkout else Path.cwd()) / ".capataz"


def running(place: Path | None = None) -> Run | None:
    """The platform that runs in this home (by default home()), or None if its supervisor is dead."""
    run = _read(run_file(place))
    if run is None or start_time(run.pid) != run.started:
        return None
    return run


def announce(run: Run, place: Path | None = None) -> None:
    """Write ``run.json`` for everyone who looks for the running platform.

    Readers see the old or the new text, never half of one. It holds passwords, so only its owner may read it.
    """
    path = run_file(place)
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=".run-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(run), file, indent=2)
            file.write("\n")
        Path(new).replace(path)
    except BaseException:
        Path(new).unlink()
        raise


def withdraw(place: Path | None = None) -> None:
    """Take ``run.json`` away: nothing runs here any more."""
    run_file(place).unlink(missing_ok=True)


def database_url() -> str | None:
    """PostgreSQL's DSN: DATABASE_URL, else the running platform's, else None."""
    named = os.environ.get("DATABASE_URL")
    if named:
        return named
    run = running()
    return run.database_url if run else None


def redis_url() -> str | None:
    """The broker's URL: REDIS_URL, else the running platform's, else None."""
    named = os.environ.get("REDIS_URL")
    if named:
        return named
    run = running()
    return run.redis_url if run else None


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks after the machine's boot; None if there is no such process.

    A pid is given out again after a while; a pid and its start time together name one process for good.
    A zombie counts as gone.
    Source: proc(5), ``/proc/[pid]/stat``, fields 3 and 22.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name, which may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def run_file(place: Path | None = None) -> Path:
    """Where the supervisor of this home (by default home()) tells what runs."""
    return (home() if place is None else place) / "run.json"


def _read(path: Path) -> Run | None:
    try:
        text = path.read_text()
    except OSError:  # not there, or somebody else's
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        processes = [Process(**process) for process in found.pop("processes")]
        return Run(**found, processes=processes)
    except (ValueError, TypeError, KeyError, AttributeError):  # of another version
        return None
