"""Vacuum: on its own session, only where it is worth it, and never in anybody's way."""

from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection

from capataz.database import Session, conninfo
from capataz.lifecycle import vacuum as module
from capataz.lifecycle.retention import PARTITIONED
from capataz.lifecycle.vacuum import vacuum

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "capataz_rubbish"


@pytest.fixture
def rubbish() -> Iterator[None]:
    """A table with 2000 dead rows that the statistics know of."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {TABLE} (number int) WITH (autovacuum_enabled = false)")
        cursor.execute(f"INSERT INTO {TABLE} SELECT generate_series(1, 3000)")
        cursor.execute(f"DELETE FROM {TABLE} WHERE number > 1000")
        cursor.execute("SELECT pg_stat_force_next_flush()")
    connection.close()  # a session that ends tells what it has done
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {TABLE}")


def test_a_table_with_many_dead_rows_is_vacuumed_and_the_others_are_not(rubbish: None, eventually) -> None:
    done = eventually(lambda: (done := vacuum()) and TABLE in done and done)
    assert done == {TABLE: "vacuumed", **dict.fromkeys(PARTITIONED, "analyzed")}
    with connection.cursor() as cursor:
        cursor.execute("SELECT n_dead_tup, vacuum_count FROM pg_stat_user_tables WHERE relname = %s", [TABLE])
        assert cursor.fetchone() == (0, 1)
    assert TABLE not in vacuum()


def test_a_table_that_somebody_holds_is_left_out(rubbish: None, eventually, monkeypatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 100)
    other = Session("somebody else")
    with other.connection().transaction():
        other.connection().execute(f"LOCK TABLE {TABLE} IN EXCLUSIVE MODE")
        done = eventually(lambda: (done := vacuum()) and TABLE in done and done)
        assert done[TABLE] == "left out: somebody else holds its lock"
    other.close()


def test_a_table_of_somebody_else_is_left_out_with_postgresqls_own_word() -> None:
    # The role of the tests is no superuser.
    with psycopg.connect(conninfo(), autocommit=True) as session:
        word = module._run(session, module.VACUUM, "pg_authid")
    assert word.startswith("left out: ") and "pg_authid" in word
