"""Progress: how much of a file has been read, told in steps of five percent."""

from __future__ import annotations

from typing import BinaryIO

from capataz.handlers import RunningTask
from tasks.roots import size_of

ROWS_BETWEEN_LOOKS = 1_000


class Progress:
    """Reports how much of a file has been read; of one that is read twice, each time a half."""

    def __init__(self, task: RunningTask, file: BinaryIO, *, after: int = 0, before: int = 100) -> None:
        self._task, self._file = task, file
        self._size, self._next = max(1, size_of(file)), after + 5
        self._after, self._span = after, before - after
        self._steps = 0

    def look(self, message: str = "") -> None:
        """Report, if another five percent have been read; never a hundred, which is for the end."""
        percent = min(99, self._after + self._file.tell() * self._span // self._size)
        if percent >= self._next:
            self._next = percent - percent % 5 + 5
            self._task.progress(percent, message)

    def step(self, message: str = "") -> None:
        """Look at every thousandth row."""
        if self._steps % ROWS_BETWEEN_LOOKS == 0:
            self.look(message)
        self._steps += 1
