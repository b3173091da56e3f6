"""End whole sessions of processes; and, run as a script, do so for a supervisor that was killed.

Every child is started as the leader of a session of its own, so whatever it forks can be found by that
session even after the child is gone. Needs nothing but the standard library.

The script is given its grace in seconds and the leaders there are, and then reads on its standard input, one
line each, who comes (``+pid start``) and who goes (``-pid``). When the other end is closed, the supervisor is
dead or done. The children have then been told by their death signal; those that are left after the grace are
killed with all that they started.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from pathlib import Path


def members(session: int) -> list[int]:
    """The living processes of this session; zombies do not count."""
    return [pid for pid in _pids() if _session_and_state(pid) == (session, True)]


def kill_session(session: int) -> None:
    """Kill every process of this session, also those that are being forked meanwhile.

    Gives up after five seconds: a process that hangs in the kernel ends when the kernel lets it.
    """
    deadline = time.monotonic() + 5
    while (found := members(session)) and time.monotonic() < deadline:
        for pid in found:
            _kill(pid)
        time.sleep(0.005)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _session_and_state(pid: int) -> tuple[int, bool] | None:
    fields = _stat(pid)
    return None if fields is None else (int(fields[3]), fields[0] not in "ZX")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or has become somebody else
        os.kill(pid, signal.SIGKILL)


def _left_over(session: int, start: int) -> bool:
    """Whether this session, and not a later one with the same number, still has a member."""
    fields = _stat(session)
    if fields is not None and int(fields[19]) != start:
        return False
    return bool(members(session))


def _read_leaders(first: list[str]) -> dict[int, int]:
    leaders: dict[int, int] = {}
    for line in itertools.chain(first, sys.stdin):
        if line.startswith("+"):
            pid, start = line[1:].split()
            leaders[int(pid)] = int(start)
        elif line.startswith("-"):
            leaders.pop(int(line[1:]), None)
    return leaders


def main() -> None:
    """Wait for the supervisor's end, then end what it has left."""
    # A terminal's Ctrl-C or a service manager's stop is for the supervisor; we are needed until it is gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    leaders = _read_leaders(sys.argv[2:])
    deadline = time.monotonic() + float(sys.argv[1])
    while any(_left_over(pid, start) for pid, start in leaders.items()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, start in leaders.items():
        if _left_over(pid, start):
            kill_session(pid)


if __name__ == "__main__":
    main()
