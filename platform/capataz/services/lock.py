"""The lock on a home: one owner at a time, for as long as that process lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from capataz.services.errors import HomeInUse


class HomeLock:
    """Held from ``with`` to the end of the block, or to the death of this process, however it dies."""

    def __init__(self, home: Path) -> None:
        self.path = home / "lock"
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Raises HomeInUse, with the owner's pid, if another process holds the home."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._descriptor, 32).decode().strip() or "unknown"
            os.close(self._descriptor)
            raise HomeInUse(
                f"{self.path.parent} is in use by process {owner}. "
                "Stop it first, or name another data directory."
            ) from None
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        # The file stays: removing it would let two processes lock two files of the same name.
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)
