"""Demo: handlers that behave, misbehave and die on request. Registered only with CAPATAZ_DEMO."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated, Any, Literal

from django.conf import settings
from pydantic import Field, JsonValue

from capataz.handlers import RunningTask, handler
from capataz.policy import fixed
from tasks import queries
from tasks.payloads import Payload

# The users of this installation, by the text that users of other systems know.
queries.register(
    "demo.active_users",
    "SELECT id, username, email, date_joined FROM auth_user WHERE is_active ORDER BY id",
    stands_for="SELECT * FROM users WHERE active = true",
)

LONGEST_SLEEP = 3600  # seconds
LONGEST_FAILURE = 500  # attempts
LARGEST_FIBONACCI = 35  # some two seconds of pure CPU in this way of computing it

Seconds = Annotated[float, Field(ge=0, le=LONGEST_SLEEP)]
SLEEPER_LIMIT = LONGEST_SLEEP + 100


class Echo(Payload):
    """Any JSON value."""

    message: JsonValue = None


class Sleep(Payload):
    """How long to sleep: at most an hour."""

    seconds: Seconds = 1


class Fail(Payload):
    """How many attempts are to fail."""

    times: Annotated[int, Field(ge=0, le=LONGEST_FAILURE)] = 1


class Crash(Payload):
    """The signal to die of, and at how many starts."""

    signal: Literal["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGTERM"] = "SIGKILL"
    times: Annotated[int, Field(ge=0, le=1000)] = 1


class Record(Payload):
    """``file`` is a plain name; ``token`` has no white space, so that every line has four words."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    token: Annotated[str, Field(pattern=r"^[!-~]{1,100}$")]
    seconds: Seconds = 0


class Compute(Payload):
    """Which Fibonacci number; the work grows by 1.6 times with each."""

    n: Annotated[int, Field(ge=0, le=LARGEST_FIBONACCI)]


@handler("demo.echo", payload=Echo)
def echo(task: RunningTask, payload: Echo) -> Any:
    """Return the message."""
    return payload.message


@handler("demo.sleep", payload=Sleep, time_limit=SLEEPER_LIMIT)
def sleep(task: RunningTask, payload: Sleep) -> dict[str, float]:
    """Sleep so many seconds."""
    time.sleep(payload.seconds)
    return {"seconds": payload.seconds}


@handler("demo.fail", payload=Fail, retry=fixed(0.2, attempts=LONGEST_FAILURE + 1))
def fail(task: RunningTask, payload: Fail) -> dict[str, int]:
    """Fail so many attempts, then succeed."""
    if task.attempt <= payload.times:
        raise RuntimeError(f"attempt {task.attempt} of {payload.times} that are asked to fail")
    return {"attempt": task.attempt}


@handler("demo.crash", payload=Crash)
def crash(task: RunningTask, payload: Crash) -> dict[str, int]:
    """Kill the own process at the first so many starts, then succeed."""
    if task.starts <= payload.times:
        os.kill(os.getpid(), signal.Signals[payload.signal])
        raise RuntimeError(f"the process survived {payload.signal}")
    return {"starts": task.starts}


@handler("demo.record", payload=Record, time_limit=SLEEPER_LIMIT, public=["payload.token"])
def record(task: RunningTask, payload: Record) -> dict[str, str]:
    """Append ``start <task id> <attempt> <token>`` to a file, and ``end`` after so many seconds.

    The file is in the data directory, under ``records``: what really ran, whatever the platform says.
    """
    facts = f"{task.id} {task.attempt} {payload.token}"
    _append(payload.file, f"start {facts}\n")
    time.sleep(payload.seconds)
    _append(payload.file, f"end {facts}\n")
    return {"token": payload.token}


@handler("demo.compute", payload=Compute)
def compute(task: RunningTask, payload: Compute) -> dict[str, int]:
    """The n-th Fibonacci number, the slow way: its purpose is to keep a CPU busy."""
    return {"result": _fibonacci(payload.n)}


def _append(name: str, line: str) -> None:
    folder = settings.CAPATAZ_DATA_DIR / "records"
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / name, flags, 0o640)
    try:
        # One write, which O_APPEND makes atomic among processes that share the file.
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _fibonacci(n: int) -> int:
    return n if n < 2 else _fibonacci(n - 1) + _fibonacci(n - 2)
