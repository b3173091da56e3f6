"""The sessions of the engine: what a frozen peer or a lock that nobody releases can do to them."""

import psycopg
import pytest

from capataz.database import Session


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("idle_in_transaction_session_timeout", "5s"),
        ("lock_timeout", "5s"),
        ("tcp_user_timeout", "10000"),
        ("tcp_keepalives_idle", "5"),
        ("synchronous_commit", "on"),
    ],
)
def test_a_session_gives_up_on_its_own_and_commits_for_good(db: None, name: str, value: str) -> None:
    assert shown(Session("test"), name) == value


def test_only_a_session_that_says_so_may_lose_its_last_commits(db: None) -> None:
    assert shown(Session("test", durable=False), "synchronous_commit") == "off"


def test_a_session_that_was_ended_is_replaced(db: None) -> None:
    session, other = Session("test"), Session("other")
    assert session.connection().execute("SELECT 1").fetchall() == [(1,)]
    assert session.backend
    other.connection().execute("SELECT pg_terminate_backend(%s)", [session.backend[0]])
    with pytest.raises(psycopg.OperationalError):
        session.connection().execute("SELECT 1")
    assert session.connection().execute("SELECT 1").fetchall() == [(1,)]
    session.close()
    other.close()


def shown(session: Session, name: str) -> str:
    try:
        [[value]] = session.connection().execute(f"SHOW {name}").fetchall()
        return str(value)
    finally:
        session.close()
