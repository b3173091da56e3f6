"""Capture: what a handler logs goes to the log of its attempt too, with its secrets masked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from capataz import jsontext

LINES = 1000  # of one attempt
CHARACTERS = 256 * 1024  # of one attempt
LONGEST = 8000  # characters of one line
NO_MORE = "what else this attempt logs is not kept"

_FORMATTER = logging.Formatter()

Send = Callable[[int, str, str], None]


class Capture(logging.Handler):
    """A logging handler that passes on what is said while a task runs, up to a budget, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self._send: Send | None = None
        self._scrub: Callable[[str], str] = str
        self._lines = self._characters = 0

    @contextmanager
    def during(self, send: Send, scrub: Callable[[str], str]) -> Iterator[None]:
        """Pass on (level, logger, message) of all that is said inside, each scrubbed."""
        self._send, self._scrub = send, scrub
        self._lines, self._characters = LINES, CHARACTERS
        try:
            yield
        finally:
            self._send = None

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on; what cannot be formatted is left out."""
        if self._send is None or getattr(record, "is_kept", False):
            return
        try:
            self.keep(record.levelno, record.name, self.format(record))
        except Exception:
            self.handleError(record)

    def mask(self, record: logging.LogRecord) -> bool:
        """Take the secrets of the task out of a record: a filter for handlers of other kinds."""
        if self._send is None:
            return True
        with contextlib.suppress(Exception):  # what cannot be formatted is for the handler to complain of
            record.msg, record.args = self._scrub(record.getMessage()), None
            if record.exc_info:
                record.exc_text = self._scrub(_FORMATTER.formatException(record.exc_info))
        return True

    def keep(self, level: int, logger: str, message: str) -> None:
        """Pass a line on, unless the budget is used up."""
        if self._send is None or self._lines <= 0:
            return
        text = jsontext.printable(self._scrub(message), LONGEST)
        self._lines -= 1
        self._characters -= len(text)
        if self._lines == 0 or self._characters < 0:
            self._lines = 0
            level, logger, text = logging.WARNING, "capataz", NO_MORE
        self._send(level, jsontext.printable(logger, 100)[:100], text)
