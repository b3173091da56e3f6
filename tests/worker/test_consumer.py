"""The consumer: how it waits for a Redis that is away."""

import socket

import kombu.utils.functional
import pytest
from kombu import Connection

from capataz.worker import consumer
from capataz.worker.consumer import Consumer


class Enough(Exception):
    """The test has seen what it wanted to."""


def test_redis_is_tried_every_second_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu's own steps grow to half a minute, and end at a hundred tries."""
    tries: list[str] = []
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        if len(waits) == 150:
            raise Enough

    monkeypatch.setattr(consumer._log, "warning", lambda text, *_: tries.append(text))
    monkeypatch.setattr(kombu.utils.functional, "sleep", sleep)
    with socket.socket() as nobody, pytest.raises(Enough):
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        port = nobody.getsockname()[1]
        Consumer.__new__(Consumer).ensure_connected(Connection(f"redis://127.0.0.1:{port}//"))
    assert waits == [1.0] * 150
    assert len(tries) == 150
