"""Handlers and plain tasks that tests need and nobody else."""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Task, current_task, shared_task
from celery.exceptions import Ignore, Reject
from celery.exceptions import SoftTimeLimitExceeded as CelerySoftTimeLimitExceeded
from celery.worker.control import control_command, ok
from django.conf import settings
from pydantic import BaseModel, field_validator

from capataz import DurableTask
from capataz.errors import Discard, RetryLater, SoftTimeLimitExceeded, TaskCancelled
from capataz.handlers import RunningTask, handler
from capataz.models import Task as Row
from capataz.policy import Circuit, Keep, exponential, fixed, never
from tests.processes import PATIENCE


def note(file: str, line: str) -> None:
    """Append a line to a record file, whole."""
    folder = Path(settings.CAPATAZ_DATA_DIR) / "records"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (line + "\n").encode())
    os.close(descriptor)


def notes(file: str) -> list[str]:
    """The lines noted so far."""
    path = Path(settings.CAPATAZ_DATA_DIR) / "records" / file
    return path.read_text().splitlines() if path.exists() else []


def _cycle() -> Any:
    made: list[Any] = []
    made.append(made)
    return made


def _deep() -> Any:
    made: Any = []
    for _ in range(100_000):
        made = [made]
    return made


NASTY = {
    "nul": lambda: "a\x00b",
    "nan": lambda: float("nan"),
    "infinity": lambda: [float("inf")],
    "surrogate": lambda: "\ud800",
    "huge": lambda: "x" * (20 * 1024 * 1024),
    "object": object,
    "bytes": lambda: b"raw",
    "key": lambda: {(1, 2): 3},
    "cycle": _cycle,
    "deep": _deep,
    "large": lambda: "y" * 900_000,
}


@handler("testing.nasty", retry=never(), time_limit=60)
def nasty(task: RunningTask, payload: dict[str, Any]) -> Any:
    return NASTY[payload["kind"]]()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@handler("testing.misbehave", retry=never(), soft_time_limit=1.0, time_limit=2.0)
def misbehave(task: RunningTask, payload: dict[str, Any]) -> Any:
    match payload["how"]:
        case "exit":
            sys.exit(3)
        case "os_exit":
            os._exit(5)
        case "keyboard":
            raise KeyboardInterrupt
        case "unprintable":
            raise Unprintable
        case "discard":
            raise Discard("not worth it")
        case "hang_politely":
            try:
                time.sleep(60)
            except SoftTimeLimitExceeded:
                return "stopped in time"
        case "hang":
            _hang()
        case "stuck":  # in C code that holds the interpreter's lock, with every signal that can be blocked
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            ctypes.PyDLL(None).sleep(600)
        case "stdout":
            os.write(1, b"\x00garbage" * 10_000)
            return "written"
        case "grandchild":
            child = subprocess.Popen(["sleep", "300"])
            note(payload["file"], str(child.pid))
            _hang()
        case "daemon":
            if os.fork() == 0:  # it outlives everybody, and has every descriptor that this child has
                os.setsid()
                note(payload["file"], str(os.getpid()))
                time.sleep(600)
                os._exit(0)
            time.sleep(600)
        case "nul_error":
            raise ValueError("bad \x00 \ud800 text")
        case "thread":
            threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
            return "started"
    return None


def _hang() -> None:
    while True:
        try:
            time.sleep(60)
        except SoftTimeLimitExceeded:
            continue


@handler("testing.flaky", retry=fixed(0.1, attempts=5), time_limit=60)
def flaky(task: RunningTask, payload: dict[str, Any]) -> Any:
    if task.attempt <= payload["times"]:
        raise RuntimeError(f"attempt {task.attempt} fails")
    return task.attempt


@handler(
    "testing.verdict",
    retry=exponential(base=0.1, attempts=5, jitter="none", on={LookupError: fixed(0.1), ValueError: never()}),
    keep=Keep(succeeded=50, dead=timedelta(days=10)),
    time_limit=60,
)
def verdict(task: RunningTask, payload: dict[str, Any]) -> Any:
    """Do what the payload says for this start; after the last of them, succeed."""
    steps = payload["steps"]
    note(payload["file"], f"{time.time()} {task.attempt} {task.starts}")
    if task.starts > len(steps):
        return task.starts
    how, wait = steps[task.starts - 1]
    try:
        match how:
            case "retry in":
                task.retry_in(wait, "as told")
            case "snooze":
                task.snooze(wait, "as told")
            case "discard":
                task.discard("as told")
    except Exception:
        return "swallowed"
    if how == "retry later":
        raise RetryLater(wait)
    raise {"lookup": KeyError, "value": UnicodeError, "other": OSError}[how]("as told")


@handler("testing.progress", time_limit=60)
def progress(task: RunningTask, payload: dict[str, Any]) -> Any:
    task.progress(40, "nearly half")
    while not Path(payload["gate"]).exists():
        time.sleep(0.02)
    return "through"


@handler("testing.gate", time_limit=600)
def wait_at_gate(task: RunningTask, payload: dict[str, Any]) -> Any:
    note(payload["file"], f"start {task.id} {task.starts}")
    while not Path(payload["gate"]).exists():
        time.sleep(0.02)
    note(payload["file"], f"end {task.id} {task.starts}")
    return task.starts


@handler("testing.async_sum", time_limit=60)
async def async_sum(task: RunningTask, payload: dict[str, Any]) -> Any:
    return sum(payload["numbers"])


@shared_task
def plain_add(a: int, b: int) -> int:
    return a + b


@shared_task(acks_late=True)
def plain_record(file: str, seconds: float) -> str:
    note(file, "start")
    time.sleep(seconds)
    note(file, "end")
    return "done"


@handler("testing.exclusive", time_limit=600, exclusive=True)
def exclusive(task: RunningTask, payload: dict[str, Any]) -> Any:
    note(payload["file"], str(os.getpid()))
    while not Path(payload["gate"]).exists():
        time.sleep(0.02)
    return "alone"


_kept: list[bytes] = []


class Suspicious(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def _trusts_nobody(cls, value: int) -> int:
        raise RuntimeError("validators may raise what they like")


@handler("testing.bad_validator", payload=Suspicious)
def bad_validator(task: RunningTask, payload: Suspicious) -> None:
    raise AssertionError("never runs")


@handler("testing.pid", retry=never(), time_limit=60)
def pid(task: RunningTask, payload: dict[str, Any]) -> int:
    """The process that ran the task, which grows for good by ``megabytes``."""
    _kept.append(os.urandom(1024) * 1024 * payload.get("megabytes", 0))
    return os.getpid()


@control_command(args=[("file", str)], visible=False)
def deafen(state: Any, file: str) -> Any:
    """Lose the sockets on which this worker waits for messages, as an event loop with a bug does."""
    cycle = state.consumer.task_consumer.channel.connection.cycle
    for fd, (_, kind) in list(cycle._fd_to_chan.items()):
        if kind == "BRPOP":
            cycle._fd_to_chan.pop(fd)
            state.consumer.hub.remove(fd)
            note(file, "deaf")
    return ok("deaf")


@control_command(args=[("seconds", float)], visible=False)
def hang(state: Any, seconds: float) -> Any:
    """Stop the event loop."""
    time.sleep(seconds)
    return ok("awake")


class Login(BaseModel):
    """A login, and what the handler is to do with it."""

    user: str
    password: str
    headers: dict[str, str] = {}
    number: int = 0
    then: str = "return"


@handler(
    "testing.login",
    payload=Login,
    retry=fixed(0.1, attempts=2),
    sensitive=["payload.password", "payload.headers.*", "payload.number", "result"],
)
def log_in(task: RunningTask, login: Login) -> dict[str, Any]:
    """Show that the values arrive, or fail with all of them in the error."""
    if login.then == "fail":
        raise ValueError(f"bad login {login.password!r} {login.headers} {login.number}")
    if login.then == "invalid":
        Login.model_validate({"user": 1, "password": [login.password]})
    return {"session": f"{login.password}-{login.number}", "length": len(login.password), **login.headers}


class Patience(BaseModel):
    """What to do when it is cancelled."""

    file: str
    then: str = "stop"


@handler("testing.patient", payload=Patience, retry=never(), cancel_grace=1.0, time_limit=300)
def be_patient(task: RunningTask, payload: Patience) -> str:
    """Work until cancelled; then stop, go on until interrupted, or do not even then let go."""
    note(payload.file, "start")
    while True:
        try:
            time.sleep(0.01)
            if task.cancelled and payload.then != "ignore":
                note(payload.file, "cancelled")
                if payload.then == "return":
                    return "done"
                task.stop_if_cancelled()
        except TaskCancelled:
            note(payload.file, "interrupted")
            if payload.then != "ignore":
                raise
            time.sleep(300)


class Talk(BaseModel):
    """What to say, how often, and what to do then."""

    text: str = "hello"
    lines: int = 1
    then: str = "return"
    password: str = ""


@handler("testing.talk", payload=Talk, retry=never())
def talk(task: RunningTask, payload: Talk) -> None:
    """Say something in every way there is."""
    log = logging.getLogger(__name__)
    for number in range(payload.lines):
        task.log(f"{payload.text} {number}", level="debug")
    log.info("said by %s, with %s", __name__, payload.password)
    logging.getLogger("some.library").warning("beware")
    if payload.then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if payload.then == "fail":
        log.exception("an exception %s", ValueError("x"))
        raise ValueError("failed")


class Flaky(Exception):
    pass


class Audited(Task):
    """A base class of somebody's own, as projects that used Celery have them."""

    abstract = True

    def on_failure(self, error: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(args[0], f"failed {type(error).__name__}")

    def on_retry(self, error: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(args[0], f"retries {self.request.retries}")


@shared_task(base=DurableTask)
def durable_add(x: Any, y: Any = 0) -> Any:
    """Add two things."""
    return x + y


@shared_task(base=DurableTask, bind=True, priority=8, expires=3600)
def durable_product(self: Any, x: Any, y: Any) -> Any:
    assert [*self.request.args, *self.request.kwargs.values()] == [x, y]
    return x * y


@shared_task(base=DurableTask)
def durable_sum(numbers: list[Any]) -> Any:
    return sum(numbers)


@shared_task(base=DurableTask)
def durable_same(*args: Any, **kwargs: Any) -> Any:
    return [repr(args), repr(sorted(kwargs.items()))]


@shared_task(base=DurableTask, bind=True, name="Durable.About-Me", queue="bulk", max_retries=0)
def durable_about_me(self: Any, file: str, key: int = 1) -> Any:
    request = self.request
    about = {name: getattr(request, name) for name in ("id", "retries", "args", "kwargs", "called_directly")}
    return {**about, **request.delivery_info, "name": current_task.name}


@shared_task(bind=True, max_retries=2, default_retry_delay=0, base=Audited)
def made_durable(self: Any, file: str, *, succeed_at: int = 9, **retry: Any) -> int:
    note(file, f"try {self.request.retries}")
    if self.request.retries < succeed_at:
        raise self.retry(exc=Flaky("not yet"), **retry)
    return int(self.request.retries)


@shared_task(
    base=DurableTask,
    autoretry_for=(Flaky,),
    dont_autoretry_for=(Unprintable,),
    max_retries=3,
    retry_backoff=0.01,
)
def durable_flaky(file: str, how: str = "flaky") -> int:
    note(file, how)
    tries = len(notes(file))
    if how == "other":
        raise KeyError("other")
    if tries < 3:
        raise Flaky("again")
    return tries


@shared_task(base=DurableTask, bind=True)
def durable_progress(self: Any, gate: str) -> str:
    self.update_state(state="PROGRESS", meta={"current": 30, "total": 40})
    while not Path(gate).exists():
        time.sleep(0.02)
    return "through"


@shared_task(base=DurableTask, soft_time_limit=0.3)
def durable_slow() -> str:
    try:
        time.sleep(30)
    except CelerySoftTimeLimitExceeded:
        return "cleaned up"
    return "too late"


@shared_task(base=DurableTask, bind=True, ignore_result=True)
def durable_ends(self: Any, how: str) -> str:
    match how:
        case "ignore":
            raise Ignore
        case "failed":
            self.update_state(state="FAILURE", meta={"why": "said so"})
            raise Ignore
        case "reject":
            raise Reject("no use", requeue=False)
    return "nobody is told"


_context: ContextVar[str] = ContextVar("context", default="untouched")


@handler("testing.coroutine", retry=never(), soft_time_limit=1.0, time_limit=60)
async def coroutine(task: RunningTask, payload: dict[str, Any]) -> Any:
    """What coroutines do; ``file`` tells that their clean-up has run."""
    try:
        match payload["how"]:
            case "wait":
                await asyncio.sleep(PATIENCE)
            case "orm":
                row = await Row.objects.aget(pk=task.id)
                return [row.type, await Row.objects.filter(pk=task.id).acount()]
            case "context":
                before = _context.get()
                _context.set("touched")
                return [before, await asyncio.create_task(_read_context()), current_task.request.id]
            case "leave":
                _left.append(asyncio.get_running_loop().create_task(asyncio.sleep(PATIENCE)))
            case "raise":
                raise Flaky("in a coroutine")
        return len(asyncio.all_tasks())
    finally:
        await asyncio.sleep(0)
        note(payload["file"], "cleaned up")


_left: list[Any] = []


async def _read_context() -> str:
    return _context.get()


@handler(
    "testing.circuit", retry=fixed(0, attempts=100), circuit=Circuit(failures=3, reset=1, ignore=(KeyError,))
)
def behind_a_circuit(task: RunningTask, payload: dict[str, Any]) -> Any:
    """Fail for as long as a file of this name lies there, noting each attempt."""
    note(f"{payload['file']}.log", "start")
    if payload.get("excused"):
        raise KeyError("nothing to do with the other side")
    if (Path(settings.CAPATAZ_DATA_DIR) / "records" / payload["file"]).exists():
        raise ConnectionError("the other side is down")
    time.sleep(payload.get("seconds", 0))
    return "through"


@handler("testing.calls", retry=never())
def calls(task: RunningTask, payload: dict[str, Any]) -> Any:
    """Ask an address, behind a circuit of this name."""
    with task.circuit(payload["name"], Circuit(failures=2, reset=1)):
        with urllib.request.urlopen(payload["url"], timeout=10) as answer:
            return answer.read().decode()


class Sum(BaseModel):
    x: int
    y: int


@handler("testing.add", payload=Sum, time_limit=60)
def add(task: RunningTask, payload: Sum) -> int:
    return payload.x + payload.y


class Total(BaseModel):
    numbers: list[int]


@handler("testing.total", payload=Total, time_limit=60)
def total(task: RunningTask, payload: Total) -> int:
    return sum(payload.numbers)


@handler("testing.spread", time_limit=60)
def spread(task: RunningTask, payload: dict[str, Any]) -> int:
    for number in range(payload["count"]):
        task.add("testing.add", {"x": number, "y": 1}, name=f"part {number}")
    return payload["count"]
