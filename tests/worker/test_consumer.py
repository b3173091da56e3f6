"""The consumer: how it waits for a Redis that is away, and what it makes of messages."""

import socket
from types import SimpleNamespace
from typing import Any

import kombu.utils.functional
import pytest
import redis
from celery.worker.consumer import Consumer as StockConsumer
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


def message(**headers: Any) -> Any:
    """A delivery that notes whether it was refused."""
    made = SimpleNamespace(headers=headers, payload=[[], {}, {}], refused=False)
    made.reject_log_error = lambda *_: setattr(made, "refused", True)
    return made


@pytest.fixture
def taker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What takes every message, where Celery's own fails with a given error."""

    def make(error: Exception | None) -> Any:
        def take(_: Any) -> None:
            if error:
                raise error

        monkeypatch.setattr(StockConsumer, "create_task_handler", lambda *_: take)
        made = Consumer.__new__(Consumer)
        made.connection_errors = (redis.ConnectionError, KeyError)
        return made.create_task_handler()

    return make


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("id"), RecursionError()])
def test_a_message_at_which_celery_fails_is_refused_and_ends_nobody(taker: Any, error: Exception) -> None:
    given = message(task="demo.echo")
    taker(error)(given)
    assert given.refused


def test_a_connection_that_is_lost_over_a_message_is_told(taker: Any) -> None:
    given = message(task="demo.echo")
    with pytest.raises(redis.ConnectionError):
        taker(redis.ConnectionError("lost"))(given)
    assert not given.refused


@pytest.mark.parametrize("name", [None, 5, ["demo.echo"], {}])
def test_a_message_that_no_text_names_never_gets_to_celery(taker: Any, name: Any) -> None:
    given = message(task=name)
    taker(AssertionError("it got there"))(given)
    assert given.refused


@pytest.mark.parametrize("limits", ["soon", [1], ["1", None], [True, None], [-1, None], [1e300, None]])
def test_a_plain_message_whose_limits_would_end_the_pool_is_refused(taker: Any, limits: Any) -> None:
    given = message(task="somebody.elses", timelimit=limits)
    taker(None)(given)
    assert given.refused


def test_a_plain_message_with_proper_limits_is_taken(taker: Any) -> None:
    given = message(task="somebody.elses", timelimit=[None, 3.5])
    taker(None)(given)
    assert not given.refused
