"""Every way to misbehave, for a handler to choose from."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

SOFT, HARD = 1.0, 3.0  # seconds that a task which misbehaves may run
HOG = 300 * 2**20  # bytes

Misbehaviour = Literal[
    "segfault", "exit", "system-exit", "oom-kill", "past-soft-limit", "past-hard-limit", "ignore-sigterm",
    "unserialisable", "huge-result", "garbage-on-stdout", "leak-descriptors", "leak-threads", "leak-memory",
]  # fmt: skip
# Those that end their process, without a word to its parent.
DEADLY = frozenset({"segfault", "exit", "oom-kill"})

_leaks: list[Any] = []


def misbehave(how: str) -> Any:
    """Do it; returns what the handler is to return."""
    return _MISBEHAVIOURS[how]()


def _segfault() -> None:
    ctypes.string_at(0)


def _exit() -> None:
    os._exit(3)


def _system_exit() -> None:
    raise SystemExit(4)


def _oom_kill() -> None:
    """Grow, and end as the kernel ends what has grown too much."""
    _leaks.append(os.urandom(4096) * (HOG // 4096))
    os.kill(os.getpid(), signal.SIGKILL)


def _past_soft_limit() -> None:
    time.sleep(60)


def _past_hard_limit() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            time.sleep(60)
        except Exception:
            continue


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _past_hard_limit()


def _unserialisable() -> object:
    return object()


def _huge_result() -> str:
    return "x" * 50 * 2**20


def _garbage_on_stdout() -> None:
    os.write(1, os.urandom(4096))
    os.write(2, b"\x00\xff\xfe not UTF-8 \x1b[2J\n")


def _leak_descriptors() -> None:
    _leaks.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(200))


def _leak_threads() -> None:
    for _ in range(20):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


def _leak_memory() -> None:
    _leaks.append(os.urandom(4096) * (HOG // 10 // 4096))


_MISBEHAVIOURS: dict[str, Callable[[], Any]] = {
    "segfault": _segfault,
    "exit": _exit,
    "system-exit": _system_exit,
    "oom-kill": _oom_kill,
    "past-soft-limit": _past_soft_limit,
    "past-hard-limit": _past_hard_limit,
    "ignore-sigterm": _ignore_sigterm,
    "unserialisable": _unserialisable,
    "huge-result": _huge_result,
    "garbage-on-stdout": _garbage_on_stdout,
    "leak-descriptors": _leak_descriptors,
    "leak-threads": _leak_threads,
    "leak-memory": _leak_memory,
}
