"""Waking the dispatcher: after the commit, alone, and not too often."""

import time
from typing import Any

import pytest
from django.db import connection, transaction

from capataz.lifecycle import wakeup
from capataz.lifecycle.submission import submit


@pytest.fixture
def statements(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every statement on Django's connection from here on, with whether a transaction was open."""
    monkeypatch.setattr(wakeup, "_last", 0.0)
    seen: list[tuple[str, bool]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append((sql, connection.in_atomic_block))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield seen


def rings(statements: list[tuple[str, bool]]) -> list[bool]:
    """Whether a transaction was open, for each time that the dispatcher was woken."""
    return [is_open for sql, is_open in statements if "NOTIFY" in sql]


def test_the_dispatcher_is_woken_after_the_commit_and_never_inside_it(statements: Any) -> None:
    with transaction.atomic():
        submit("demo.echo", {"message": 1})
        assert rings(statements) == []
    assert rings(statements) == [False]


def test_a_submission_that_is_rolled_back_wakes_nobody(statements: Any) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        submit("demo.echo", {"message": 1})
        1 / 0  # noqa: B018
    assert rings(statements) == []


def test_the_disk_is_not_waited_for(statements: Any) -> None:
    wakeup.ring()
    [(sql, _)] = statements
    assert sql.startswith("SET LOCAL synchronous_commit = off;")


def test_nobody_is_woken_more_than_twenty_times_a_second(
    statements: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for millisecond in range(1000):
        now = 1000 + millisecond / 1000
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        wakeup.ring()
    monkeypatch.undo()
    assert 15 <= len(rings(statements)) <= 20
