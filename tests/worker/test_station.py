"""The station: when a message is let go, and what a child may keep of its parent."""

import os
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as celery_state

from capataz.worker import watch
from capataz.worker.channel import Channel
from capataz.worker.holding import Bundle, Ended, Ending
from capataz.worker.ledger import Announcement
from capataz.worker.station import Station
from capataz.worker.timings import Timings
from capataz.worker.watch import Watch
from tests.worker.test_watch import new_held


def nothing(*_: Any) -> None:
    """Whoever would hear of it is not there."""


@pytest.fixture
def announced() -> list[Announcement]:
    """What the ledger is told of."""
    return []


@pytest.fixture
def ended() -> list[Ended]:
    """What the watch has found out."""
    return []


@pytest.fixture
def station(announced: list[Announcement], ended: list[Ended], channel: Channel) -> Station:
    """Without a Celery worker around it, and without an event loop."""
    made = Station.__new__(Station)
    made.worker = SimpleNamespace(hub=None, autoscaler=None)
    made.worker.process_task = lambda request: None
    made.phase = "running"
    made.bundles, made._requests = {}, {}
    made._todo, made._waiting, made._free_pipes = deque(), deque(), deque([0])
    made._channel = channel
    made.timings = Timings()
    made.ledger = SimpleNamespace(announce=announced.append, wake=lambda: None)  # type: ignore[assignment]
    made.watch = Watch(channel, ended.extend, nothing, nothing, on_running=nothing, exit_of=nothing)
    made.flower = SimpleNamespace(received=nothing, started=nothing, ended=nothing)  # type: ignore[assignment]
    return made


def bundle_of(size: int) -> Bundle:
    made = Bundle(1, "demo.echo", acknowledge=nothing, open=size)
    made.items.extend(new_held(made, index, 300.0) for index in range(size))
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


def test_to_celery_each_task_is_a_request_of_its_own(station: Station) -> None:
    bundle = bundle_of(2)
    one, other = ids = [str(held.id) for held in bundle.items]
    station._start(bundle)
    assert {request.id for request in celery_state.reserved_requests} == set(ids)
    station._show_running(bundle.items[:1])
    assert {request.id for request in celery_state.active_requests} == {one}
    station._settle([Ended(bundle.items[0], Ending.SUCCEEDED, 0.0)], [])
    assert not celery_state.active_requests
    assert {request.id for request in celery_state.reserved_requests} == {other}
    station._settle([Ended(bundle.items[1], Ending.GIVEN_BACK, 0.0)], [bundle])
    assert not celery_state.reserved_requests


def test_whoever_is_asked_to_stop_claims_nothing_and_starts_nothing_any_more(
    station: Station, ended: list[Ended], eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim may have been under way."""
    monkeypatch.setattr(watch, "UNBEGUN", 3600.0)
    station.watch.start()
    station.drain()
    assert station.ledger.draining
    eventually(lambda: not station.watch._orders)
    bundle = bundle_of(3)
    station._start(bundle)
    eventually(lambda: len(ended) == 3, within=20)  # the watch looks at everything once a minute
    assert all(each.ending is Ending.GIVEN_BACK and each.counted for each in ended)
    station._settle(ended, [bundle])
    station.watch.stop()


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
