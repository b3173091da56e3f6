"""What the children print: on the console with their names, and in a file each."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import sys
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

LOG_BYTES = 10_000_000  # per file, after which a new one begins
LOG_FILES = 3  # kept besides the current one
CONSOLE_LINES = 10_000  # waiting to be printed
LINE_BYTES = 65_536  # a longer line is broken
COLOURS = (
    "36",
    "33",
    "32",
    "35",
    "34",
    "31",
    "36;1",
    "33;1",
    "32;1",
    "35;1",
    "34;1",
    "31;1",
)  # ANSI


class Output:
    """Copies each child's output line by line. A console that stands still never holds up a child."""

    def __init__(self, logs: Path, console: int | None = None, width: int = 10) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._console = _standard_output() if console is None else console
        self._width = width
        self._colours = itertools.cycle(COLOURS)
        self._prefixes: dict[str, str] = {}
        self._readers: list[threading.Thread] = []
        # A person who stops the terminal (Ctrl-S) must not stop the platform: what does not fit is in the
        # file.
        self._waiting: queue.Queue[str | None] = queue.Queue(CONSOLE_LINES)
        self._printer = threading.Thread(target=self._print, name="console", daemon=True)
        self._printer.start()

    def say(self, line: str) -> None:
        """Print a line of our own, as it is."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(line)

    def follow(self, name: str, pipe: IO[bytes]) -> None:
        """Copy what comes through ``pipe`` until its other end is closed."""
        self._readers = [reader for reader in self._readers if reader.is_alive()]
        reader = threading.Thread(target=self._read, args=(name, pipe), name=f"output of {name}", daemon=True)
        self._readers.append(reader)
        reader.start()

    def close(self, seconds: float = 2) -> None:
        """Print what has been said so far, unless that takes longer than ``seconds``."""
        for reader in self._readers:
            reader.join(seconds / 4)
        try:
            self._waiting.put(None, timeout=seconds / 4)
        except queue.Full:
            return
        self._printer.join(seconds / 2)

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        log = self._open_log(name)
        with pipe:
            while line := pipe.readline(LINE_BYTES):
                text = line.decode(errors="replace").rstrip("\r\n")
                log.emit(logging.LogRecord(name, logging.INFO, "", 0, text, None, None))
                self.say(self._prefix(name) + text)
        log.close()

    def _open_log(self, name: str) -> RotatingFileHandler:
        path = self._logs / f"{name}.log"
        return RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")

    def _prefix(self, name: str) -> str:
        if name not in self._prefixes:
            label = f"{name.ljust(self._width)} | "
            coloured = self._console is not None and os.isatty(self._console)
            self._prefixes[name] = f"\033[{next(self._colours)}m{label}\033[0m" if coloured else label
        return self._prefixes[name]

    def _print(self) -> None:
        while (line := self._waiting.get()) is not None:
            if self._console is None:
                continue
            try:
                _write_all(self._console, f"{line}\n".encode(errors="replace"))
            except OSError:  # nobody reads it any more
                self._console = None


def _standard_output() -> int | None:
    # The descriptor, and not the stream: a thread that hangs in the stream's write holds a lock that the
    # interpreter needs to end.
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something in memory
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
