"""What joins a worker's parent and its pool children besides billiard: made before the first fork.

Two kinds of kernel object. *Tokens*: one pipe per bundle in flight holds one token per task that has
not started; whoever reads a token has that task, child or parent, exactly one of them. *Reports*: one
datagram socket on which the children tell what they do; a datagram arrives whole or not at all,
whatever happens to its sender.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_TOKEN = struct.Struct("=IH")  # the bundle's serial number, the task's index in it

# A datagram has to fit into the socket's buffer; what is larger goes through a file.
_BUFFER = 1024 * 1024
_LARGEST_DATAGRAM = 64 * 1024
# A report of this age in the spool was written for a worker that is dead.
FORGOTTEN = 3600.0  # seconds


class Tokens:
    """One pipe of tokens."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def put(self, serial: int, indexes: Iterable[int]) -> None:
        """Make these tasks of a bundle takeable, in this order. At most 250: one atomic write."""
        os.write(self._writer, b"".join(_TOKEN.pack(serial, index) for index in indexes))

    def take(self, serial: int) -> int | None:
        """The next task of this bundle, now the caller's; None when none is left."""
        try:
            token = os.read(self._reader, _TOKEN.size)
        except BlockingIOError:
            return None
        found, index = _TOKEN.unpack(token)
        if found == serial:
            return int(index)
        # The pipe serves another bundle by now: this caller comes from one that was taken back.
        os.write(self._writer, token)
        return None

    def take_all(self, serial: int) -> list[int]:
        """Every task of this bundle that nobody has taken, now the caller's."""
        taken = []
        while (index := self.take(serial)) is not None:
            taken.append(index)
        return taken


class Reports:
    """The socket on which children report, one pickled tuple per datagram."""

    def __init__(self, spool: Path) -> None:
        self._parent, self._child = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end, option in ((self._parent, socket.SO_RCVBUF), (self._child, socket.SO_SNDBUF)):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._parent.setblocking(False)
        self._spool = spool

    def fileno(self) -> int:
        """The parent's end, to wait on."""
        return self._parent.fileno()

    def close_parents_end(self) -> None:
        """In a child: let a send fail, not wait, once the parent is gone."""
        self._parent.close()

    def send(self, report: tuple[Any, ...]) -> None:
        """Report from a child; waits while the parent is behind."""
        datagram = pickle.dumps(report, protocol=pickle.HIGHEST_PROTOCOL)
        if len(datagram) > _LARGEST_DATAGRAM:
            datagram = pickle.dumps(self._write_spool(datagram))
        self._child.send(datagram)

    def receive(self) -> list[tuple[Any, ...]]:
        """Everything that has been reported and not received yet."""
        reports: list[tuple[Any, ...]] = []
        while True:
            try:
                datagram = self._parent.recv(_LARGEST_DATAGRAM + 1024)
            except BlockingIOError:
                return reports
            try:
                report = pickle.loads(datagram)
                reports.append(self._read_spool(report) if isinstance(report, str) else report)
            except Exception:
                _log.exception("a report from a child cannot be read; its task is given up for lost")

    def _write_spool(self, datagram: bytes) -> str:
        self._spool.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=self._spool, prefix="report-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(datagram)
        return path

    def _read_spool(self, path: str) -> tuple[Any, ...]:
        report: tuple[Any, ...] = pickle.loads(Path(path).read_bytes())
        Path(path).unlink()
        return report


def sweep(spool: Path) -> None:
    """Delete what workers that died have left in the spool: a report is read within moments, or never."""
    for path in spool.glob("report-*"):
        with contextlib.suppress(FileNotFoundError):  # another worker sweeps too, or has just read it
            if path.stat().st_mtime < time.time() - FORGOTTEN:
                path.unlink()


class Channel:
    """All kernel objects of one worker: inherited by every child that it ever forks."""

    def __init__(self, pipes: int, spool: Path) -> None:
        self.reports = Reports(spool)
        self.tokens = [Tokens() for _ in range(pipes)]
