"""The transport: what a broken connection or a broken entry does to a worker, which is nothing."""

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu.transport import redis as stock

from capataz import pointer
from capataz.worker.transport import Channel, QoS

A_TASK = uuid.UUID("0198a000-0000-7000-8000-000000000001")


class Broken:
    """Where everything that is asked for fails, as without a connection."""

    def __getattr__(self, name: str) -> Any:
        raise redis.ConnectionError("broken")


@pytest.fixture
def qos() -> QoS:
    """With a plain delivery and a pointer's on a connection that is broken."""
    made = QoS(SimpleNamespace(connection=Broken(), do_restore=False), 10)
    made._delivered["plain"] = made._delivered["pointer"] = SimpleNamespace()
    made.pointers.add("pointer")
    return made


@pytest.mark.parametrize("tag", ["plain", "pointer"])
@pytest.mark.parametrize("settle", [QoS.ack, QoS.reject])
def test_settling_on_a_broken_connection_never_raises(qos: QoS, settle: Any, tag: str) -> None:
    settle(qos, tag)
    assert tag in qos._dirty  # it occupies no place of the prefetch count


@pytest.mark.parametrize("restore", [QoS.restore_unacked, QoS.restore_unacked_once])
def test_restoring_on_a_broken_connection_never_raises(
    qos: QoS, monkeypatch: pytest.MonkeyPatch, restore: Any
) -> None:
    def fail(*_: Any) -> None:
        raise redis.ConnectionError("broken")

    for name in ("restore_unacked", "restore_unacked_once"):
        monkeypatch.setattr(stock.QoS, name, fail)
    restore(qos)
    assert "pointer" not in qos._delivered  # the dispatcher publishes it again


class Kombu:
    """The side of the connection that takes messages, and refuses some."""

    def __init__(self, error: Exception | None) -> None:
        self.delivered: list[Any] = []
        self._error = error

    def _deliver(self, message: Any, queue: str) -> None:
        if self._error:
            raise self._error
        self.delivered.append((message, queue))


def channel(kombu: Kombu) -> Channel:
    made = Channel.__new__(Channel)
    made.connection, made.connection_errors = kombu, (redis.ConnectionError,)
    made._queue_cycle = SimpleNamespace(rotate=lambda queue: None)
    return made


@pytest.mark.parametrize("entry", [b"", b"[1,2]", b'{"headers": 5}', b"null", b"\xff"])
def test_an_entry_that_is_not_a_message_is_dropped_and_counted(entry: bytes) -> None:
    kombu = Kombu(None)
    reader = channel(kombu)
    reader._deliver_entry("default", entry)
    assert (kombu.delivered, reader.undecodable) == ([], 1)


def test_a_message_that_kombu_cannot_take_is_dropped_and_counted() -> None:
    reader = channel(Kombu(KeyError("no consumer")))
    reader._deliver_entry("default", pointer.encode("demo.echo", "default", 0, [A_TASK]).encode())
    assert reader.undecodable == 1


def test_a_lost_connection_is_no_fault_of_the_message() -> None:
    reader = channel(Kombu(redis.ConnectionError("lost")))
    with pytest.raises(redis.ConnectionError):
        reader._deliver_entry("default", pointer.encode("demo.echo", "default", 0, [A_TASK]).encode())
    assert reader.undecodable == 0
