"""Circuits around calls: closed, open, half open, and back, for all processes alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db.models import F
from hypothesis import given
from hypothesis import strategies as some

from capataz import circuits
from capataz.circuits import CLOSED, HALF_OPEN, OPEN, Standing
from capataz.database import Session
from capataz.errors import CircuitOpen, ConfigurationError
from capataz.models import Circuit, Event
from capataz.policy import Circuit as Policy
from tests.lifecycle.stage import together

HOST = "api.example.org"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def shared(transactional_db: None) -> Iterator[None]:
    yield
    circuits.disconnect()


def down() -> None:
    raise ConnectionError("down")


def fail(policy: Policy, name: str = HOST) -> None:
    with pytest.raises(ConnectionError):
        circuits.call(name, down, policy)


def row(name: str = HOST) -> Circuit:
    return Circuit.objects.get(pk=name)


def ripe(name: str = HOST) -> None:
    Circuit.objects.filter(pk=name).update(retry_at=F("changed_at"))


def kinds() -> list[str]:
    return list(Event.objects.filter(subject=HOST).order_by("id").values_list("kind", flat=True))


class Model:
    """The three states as a textbook has them, on whole seconds."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.state, self.count, self.good, self.until, self.rounds = policy, CLOSED, 0, 0, 0.0, 0

    def at(self, now: float) -> str:
        if self.state == OPEN and now >= self.until:
            self.state, self.good = HALF_OPEN, 0
        return self.state

    def after(self, failed: bool, now: float) -> None:
        if self.state == OPEN:
            return
        if failed:
            self.count += 1
            if self.state == HALF_OPEN or self.count >= self.policy.failures:
                self.rounds += 1
                rest = self.policy.reset * self.policy.growth ** (self.rounds - 1)
                self.state, self.until = OPEN, now + min(rest, self.policy.longest)
        elif self.state == CLOSED:
            self.count = 0
        else:
            self.good += 1
            if self.good >= self.policy.successes:
                self.state, self.count, self.rounds = CLOSED, 0, 0


@given(
    policy=some.builds(
        Policy,
        failures=some.integers(1, 4),
        successes=some.integers(1, 3),
        reset=some.integers(1, 5),
        growth=some.sampled_from([1, 2]),
        longest=some.just(8),
        timeout=some.just(1),
    ),
    steps=some.lists(some.tuples(some.integers(1, 4), some.booleans()), max_size=40),
)
def test_its_states_are_those_of_the_model(policy: Policy, steps: list[tuple[int, bool]]) -> None:
    standing, model, seconds = Standing(HOST), Model(policy), 0
    for wait, failed in steps:
        seconds += wait
        now = START + timedelta(seconds=seconds)
        standing = standing.ripen(now)
        assert standing.state == model.at(seconds)
        standing = standing.judge(policy, failed=failed, started=now, now=now)
        model.after(failed, seconds)
        assert standing.state == model.state


def test_what_began_before_the_last_change_counts_for_nothing() -> None:
    half_open = Standing(HOST, HALF_OPEN, changed_at=START)
    for failed in (True, False):
        early = START - timedelta(seconds=1)
        assert half_open.judge(Policy(), failed=failed, started=early, now=START) is half_open


def test_a_probes_right_ends_by_itself() -> None:
    policy, half_open = Policy(probes=1, timeout=5), Standing(HOST, HALF_OPEN, changed_at=START)
    lent = half_open.lend(policy, START)
    assert lent is not None
    assert lent.lend(policy, START + timedelta(seconds=4)) is None
    assert lent.lend(policy, START + timedelta(seconds=6)) is not None


def test_the_defaults_are_the_seeds() -> None:
    assert (Policy().failures, Policy().timeout, Policy().reset) == (5, 30, 60)


@pytest.mark.parametrize(
    "wrong", [{"failures": 0}, {"reset": 0}, {"timeout": -1}, {"probes": 0}, {"growth": 0.5}]
)
def test_a_declaration_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Policy(**wrong)


def test_it_opens_is_tried_and_closes(shared: None) -> None:
    policy = Policy(failures=2, reset=30)
    for _ in range(2):
        fail(policy)
    with pytest.raises(CircuitOpen) as refused:
        circuits.call(HOST, lambda: pytest.fail("was called"), policy)
    assert 25 < refused.value.retry_after <= 30
    ripe()
    assert circuits.call(HOST, lambda: "through", policy) == "through"
    assert (row().state, row().failures) == ("CLOSED", 0)
    assert kinds() == ["circuit.opened", "circuit.halfOpen", "circuit.closed"]


def test_callers_that_fail_together_open_it_once(shared: None) -> None:
    policy = Policy(failures=5)
    for _ in range(4):
        fail(policy)
    sessions = [Session("caller", durable=False) for _ in range(8)]

    def one(session: Any) -> None:
        connection = session.connection()
        with connection.transaction():
            was, now = circuits.lock(connection, HOST)
            circuits.store(connection, was, was.judge(policy, failed=True, started=now, now=now))
        session.close()

    together(*(lambda session=session: one(session) for session in sessions))
    assert kinds() == ["circuit.opened"]
    assert row().failures == 5


def test_only_so_many_probes_are_under_way(shared: None) -> None:
    policy = Policy(failures=1, probes=2, successes=2)
    fail(policy)
    ripe()
    with circuits.circuit(HOST, policy), circuits.circuit(HOST, policy), pytest.raises(CircuitOpen):
        circuits.call(HOST, lambda: pytest.fail("was called"), policy)
    assert row().state == "CLOSED"


def test_a_call_that_takes_too_long_is_a_failure(shared: None) -> None:
    policy = Policy(failures=1, timeout=0.01)
    circuits.call(HOST, lambda: time.sleep(0.05), policy)
    assert row().state == "OPEN"


def test_exceptions_that_are_left_out_do_not_count(shared: None) -> None:
    policy = Policy(failures=1, ignore=(KeyError,))
    with pytest.raises(KeyError), circuits.circuit(HOST, policy):
        raise KeyError
    assert circuits.call(HOST, lambda: 1, policy) == 1


def test_a_count_outlives_the_callers_transaction(shared: None) -> None:
    from django.db import transaction

    with pytest.raises(ConnectionError), transaction.atomic():
        circuits.call(HOST, down, Policy(failures=1))
    assert row().state == "OPEN"


def test_calls_go_through_where_postgresql_cannot_be_asked(
    shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    def refuse(*_: Any) -> Any:
        raise psycopg.OperationalError("away")

    policy = Policy(failures=1)
    fail(policy)
    monkeypatch.setattr(Session, "connection", refuse)
    monkeypatch.setattr(circuits, "_away_until", 0.0)
    assert circuits.call(HOST, lambda: "through", policy) == "through"
    monkeypatch.setattr(circuits, "_away_until", 0.0)


@pytest.mark.parametrize("name", ["", "type:demo.echo", "a\x00b", "x" * 256])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        circuits.call(name, lambda: None)
