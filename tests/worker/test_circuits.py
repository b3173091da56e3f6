"""Circuits with real workers and another side that comes and goes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from capataz.lifecycle.submission import submit
from capataz.models import Circuit, Event, Task
from tests.processes import Processes
from tests.records import state
from tests.workload import notes

Eventually = Callable[..., Any]


class Side(ThreadingHTTPServer):
    is_down = True
    asked = 0


@pytest.fixture
def side() -> Iterator[Side]:
    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked += 1
            self.send_response(500 if server.is_down else 200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = Side(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def running(platform: Processes) -> Processes:
    platform.start_dispatcher()
    platform.start_worker()
    return platform


def opened(name: str) -> int:
    return Event.objects.filter(kind="circuit.opened", subject=name).count()


def test_tasks_behind_an_open_circuit_wait_unspent_until_the_host_is_back(
    running: Processes, eventually: Eventually, side: Side
) -> None:
    data = {"name": "flapping.example", "url": f"http://127.0.0.1:{side.server_port}/"}
    for _ in range(2):
        failing = submit("testing.calls", data)
        eventually(lambda task=failing: state(task) == "dead")
    assert opened("flapping.example") == 1
    asked = side.asked
    waiting = [submit("testing.calls", data) for _ in range(10)]
    eventually(lambda: opened("flapping.example") >= 2)  # a probe has found it still down
    probes = side.asked - asked
    assert probes <= opened("flapping.example")
    side.is_down = False
    # All but the probes that failed: one attempt is all they have.
    eventually(lambda: {state(task) for task in waiting} <= {"dead", "succeeded"})
    assert "succeeded" in {state(task) for task in waiting}
    assert {Task.objects.get(pk=task.pk).attempts for task in waiting} == {1}
    assert Circuit.objects.get(pk="flapping.example").state == "CLOSED"


def test_a_type_that_fails_is_held_back_and_recovers(running: Processes, eventually: Eventually) -> None:
    name = uuid.uuid4().hex
    down = Path(settings.CAPATAZ_DATA_DIR) / "records" / name
    down.parent.mkdir(parents=True, exist_ok=True)
    down.touch()
    waiting = [submit("testing.circuit", {"file": name}) for _ in range(4)]
    eventually(lambda: opened("type:testing.circuit") >= 2)
    started = len(notes(f"{name}.log"))
    # Those that opened it, what was in flight then, and the probes.
    assert started <= 3 + 2 + opened("type:testing.circuit")
    down.unlink()
    eventually(lambda: {state(task) for task in waiting} == {"succeeded"})
    assert Circuit.objects.get(pk="type:testing.circuit").state == "CLOSED"


def test_failures_that_are_left_out_do_not_open_it(running: Processes, eventually: Eventually) -> None:
    task = submit("testing.circuit", {"file": uuid.uuid4().hex, "excused": True}, max_attempts=6)
    eventually(lambda: state(task) == "dead")
    assert Task.objects.get(pk=task.pk).attempts == 6
    assert Circuit.objects.get(pk="type:testing.circuit").failures == 0
