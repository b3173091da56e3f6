"""The demo handlers do what the tests of the platform ask of them."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pytest_django import Settings

from capataz.handlers import Handler, RunningTask
from tasks import demo


def run(handler: Handler[Any], *, attempt: int = 1, starts: int = 1, **data: Any) -> Any:
    task = RunningTask(id=uuid.uuid4(), type=handler.name, attempt=attempt, starts=starts)
    return handler.function(task, handler.payload.validate_python(data))


@pytest.mark.parametrize("message", ["hola", 7, None, {"a": [1, 2]}])
def test_echo_returns_its_message(message: Any) -> None:
    assert run(demo.echo, message=message) == message


def test_sleep_sleeps() -> None:
    assert run(demo.sleep, seconds=0.01) == {"seconds": 0.01}


def test_sleep_never_outlasts_its_time_limit() -> None:
    with pytest.raises(ValidationError):
        run(demo.sleep, seconds=3601)
    assert demo.sleep.time_limit > 3600


def test_fail_fails_as_often_as_asked_and_then_succeeds() -> None:
    for attempt in (1, 2):
        with pytest.raises(RuntimeError):
            run(demo.fail, times=2, attempt=attempt)
    assert run(demo.fail, times=2, attempt=3) == {"attempt": 3}


def test_fail_has_attempts_enough_for_the_most_failures() -> None:
    assert demo.fail.retry.attempts > demo.LONGEST_FAILURE
    assert demo.fail.retry.delay(7).total_seconds() == 0.2


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM"])
def test_crash_dies_of_the_signal(name: str) -> None:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.disable()
        try:
            run(demo.crash, signal=name, times=1)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.Signals[name]


def test_crash_survives_once_it_has_started_often_enough() -> None:
    assert run(demo.crash, times=2, starts=3) == {"starts": 3}


def test_record_writes_a_line_at_the_start_and_one_at_the_end(settings: Settings, tmp_path: Path) -> None:
    settings.CAPATAZ_DATA_DIR = tmp_path
    threads = [
        threading.Thread(target=run, args=(demo.record,), kwargs={"file": "r.txt", "token": f"t{number}"})
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line.split() for line in (tmp_path / "records" / "r.txt").read_text().splitlines()]
    assert len(lines) == 40
    assert all(len(line) == 4 for line in lines)
    for number in range(20):
        ours = [line for line in lines if line[3] == f"t{number}"]
        assert [line[0] for line in ours] == ["start", "end"]
        assert ours[0][1:] == ours[1][1:]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\n", "a\0b"])
def test_record_takes_plain_file_names_only(name: str) -> None:
    with pytest.raises(ValidationError):
        run(demo.record, file=name, token="t")


@pytest.mark.parametrize("token", ["two words", "line\n", ""])
def test_record_takes_tokens_without_white_space_only(token: str) -> None:
    with pytest.raises(ValidationError):
        run(demo.record, file="r.txt", token=token)


def test_compute_is_fibonacci() -> None:
    assert [run(demo.compute, n=n)["result"] for n in (0, 1, 2, 10, 20)] == [0, 1, 1, 55, 6765]


@pytest.mark.parametrize("n", [-1, 36])
def test_compute_is_bounded(n: int) -> None:
    with pytest.raises(ValidationError):
        run(demo.compute, n=n)
