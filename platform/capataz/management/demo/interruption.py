"""Ctrl-C and its relatives: noticed at once, obeyed only where the demo waits."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

from capataz.management.demo.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_EVERY = 0.2  # seconds


class Interruption:
    """Remembers a signal instead of raising it: an exception in the midst of a cleanup would undo it.

    Use it as a context manager, in the main thread.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._former[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it to us

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._number is not None:
            raise Interrupted(self._number)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether ``condition`` came true within ``seconds``. Raises Interrupted."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_EVERY)
        return True

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number
