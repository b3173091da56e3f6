"""``manage.py dispatcher``: a real process that stops when asked, and does not live half."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from capataz.lifecycle.submission import submit
from capataz.management.commands.dispatcher import Shift
from capataz.models import Worker
from tests.processes import Processes


def is_released(task: Any) -> bool:
    task.refresh_from_db()
    return task.released_at is not None


def has_sessions() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(DISTINCT application_name) FROM pg_stat_activity"
            " WHERE application_name IN ('capataz dispatcher', 'capataz recovery')"
            " AND datname = current_database()"
        )
        return bool(cursor.fetchone()[0] == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_releases_and_stops_when_asked(
    platform: Processes, eventually: Callable[..., Any], number: signal.Signals
) -> None:
    Worker.objects.create(
        name="w", host="h", pid=1, queues=["default"], types=["demo.echo"], max_concurrency=1, phase="running"
    )
    task = submit("demo.echo")
    dispatcher = platform.start_dispatcher()
    eventually(lambda: is_released(task))
    eventually(has_sessions)
    start = time.monotonic()
    dispatcher.signal(number)
    assert dispatcher.popen.wait(timeout=10) == 0
    assert time.monotonic() - start < 5


class Endless:
    """A dispatcher that only waits."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def run(self) -> None:
        assert self.stopped.wait(10)

    def stop(self) -> None:
        self.stopped.set()


class Watch(threading.Thread):
    """A recovery that ends when told to."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()

    def run(self) -> None:
        self.ended.wait(10)

    def stop(self) -> None:
        self.ended.set()


def test_it_ends_when_recovery_dies() -> None:
    recovery = Watch()
    shift = Shift(Endless(), recovery)  # type: ignore[arg-type]
    threading.Timer(0.1, recovery.ended.set).start()
    assert shift.run() is False


def test_it_ends_well_when_asked() -> None:
    shift = Shift(Endless(), Watch())  # type: ignore[arg-type]
    threading.Timer(0.1, shift.stop).start()
    assert shift.run() is True


def test_recovery_ends_when_the_dispatcher_fails() -> None:
    class Broken(Endless):
        def run(self) -> None:
            raise RuntimeError("broken")

    recovery = Watch()
    with pytest.raises(RuntimeError):
        Shift(Broken(), recovery).run()  # type: ignore[arg-type]
    assert not recovery.is_alive()
