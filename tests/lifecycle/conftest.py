"""Fixtures for the stages of a task's life: workers in the database, dispatchers, a queue's row."""

import contextlib
from collections.abc import Callable, Iterator

import psycopg
import pytest
from django.db import connection

from capataz.database import Session
from capataz.lifecycle.dispatch import Dispatcher
from capataz.models import Queue
from tests.lifecycle.stage import StagedWorker


@pytest.fixture
def hire(transactional_db: None) -> Iterator[Callable[..., StagedWorker]]:
    """Register workers that live until the test ends or they die."""
    hired: list[StagedWorker] = []

    def make(**options: object) -> StagedWorker:
        hired.append(StagedWorker(**options))  # type: ignore[arg-type]
        return hired[-1]

    yield make
    for worker in hired:
        worker.session.close()


@pytest.fixture
def worker(hire: Callable[..., StagedWorker]) -> StagedWorker:
    """A live worker that knows every type and consumes every queue."""
    return hire()


@pytest.fixture
def new_dispatcher(transactional_db: None) -> Iterator[Callable[[], Dispatcher]]:
    """Make dispatchers. The first turn of each looks at everything, whatever others have just seen."""
    made: list[Dispatcher] = []

    def make() -> Dispatcher:
        made.append(Dispatcher())
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher._session.close()


@pytest.fixture
def turn(new_dispatcher: Callable[[], Dispatcher]) -> Callable[[], int]:
    """One turn of a dispatcher that has just started."""
    return lambda: new_dispatcher().turn()


@pytest.fixture
def queue(transactional_db: None) -> Queue:
    return Queue.objects.get_or_create(name="default")[0]


@pytest.fixture
def session(transactional_db: None) -> Iterator[psycopg.Connection]:
    """A connection of its own, as the loops of the platform have."""
    own = Session("test")
    yield own.connection()
    own.close()


@pytest.fixture
def locked(transactional_db: None) -> Iterator[Callable[..., contextlib.AbstractContextManager[None]]]:
    """Lock the rows of these tasks from elsewhere, for as long as a block of code runs."""
    own = Session("somebody else")

    @contextlib.contextmanager
    def lock(*tasks: object) -> Iterator[None]:
        with own.connection().transaction():
            ids = [task.pk for task in tasks]  # type: ignore[attr-defined]
            own.connection().execute("SELECT 1 FROM capataz_task WHERE id = ANY(%s) FOR UPDATE", [ids])
            yield

    yield lock
    own.close()


@pytest.fixture
def tables_keep_their_partitions(transactional_db: None) -> Iterator[None]:
    """Whatever partitions a test makes or drops, those of today are there for the next."""
    yield
    with connection.cursor() as cursor:
        for table in ("capataz_attempt", "capataz_event"):
            cursor.execute("SELECT capataz_prepare_partitions(%s, 3)", [table])
