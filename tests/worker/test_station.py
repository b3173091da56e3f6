"""The station: when a message is let go, and what a child may keep of its parent."""

import os
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from capataz.worker.holding import Bundle
from capataz.worker.ledger import Announcement
from capataz.worker.station import Station


@pytest.fixture
def announced() -> list[Announcement]:
    """What the ledger is told of."""
    return []


@pytest.fixture
def station(announced: list[Announcement]) -> Station:
    """Without a Celery worker around it, and without an event loop."""
    made = Station.__new__(Station)
    made.worker = SimpleNamespace(hub=None, autoscaler=None)
    made.bundles = {}
    made._todo, made._waiting, made._free_pipes = deque(), deque(), deque()
    made.ledger = SimpleNamespace(announce=announced.append)  # type: ignore[assignment]
    made.watch = SimpleNamespace(forget=lambda bundle: None)  # type: ignore[assignment]
    made.flower = SimpleNamespace(ended=lambda ended: None)  # type: ignore[assignment]
    return made


def test_a_message_is_let_go_only_when_the_ledger_has_settled_it(
    station: Station, announced: list[Announcement]
) -> None:
    acknowledged: list[bool] = []
    station.announce("demo.echo", [], lambda: acknowledged.append(True))
    station._work_off()
    assert acknowledged == []
    [announcement] = announced
    bundle = Bundle(1, "demo.echo", announcement.acknowledge)
    station._on_settled([], [bundle])
    assert acknowledged == []  # the main thread talks to Redis, and no other
    station._work_off()
    assert acknowledged == [True]


def test_a_call_into_the_event_loop_that_fails_holds_up_no_other(station: Station) -> None:
    done: list[bool] = []

    def fail() -> None:
        raise ZeroDivisionError

    station.soon(fail)
    station.soon(lambda: done.append(True))
    station._work_off()
    assert done == [True]


def test_a_child_lets_go_of_its_parents_sessions(station: Station, fork: Callable[..., int]) -> None:
    """Through its copy, what a task leaves behind would keep the lock of a dead worker."""
    ends = [socket.socketpair() for _ in range(2)]
    for name, (ours, _) in zip(["ledger", "heartbeat"], ends, strict=True):
        session: Any = SimpleNamespace(socket=ours.fileno)
        setattr(station, name, SimpleNamespace(session=session))
    ready, wait = os.pipe(), os.pipe()

    def linger() -> None:
        os.close(wait[1])  # so that it ends with this test
        station._after_fork_in_child()
        os.write(ready[1], b".")
        os.read(wait[0], 1)

    fork(linger)
    os.read(ready[0], 1)
    for ours, theirs in ends:
        ours.close()
        theirs.settimeout(5)
        assert theirs.recv(1) == b""  # nobody has the other end any more
        theirs.close()
    for end in (*ready, *wait):
        os.close(end)
