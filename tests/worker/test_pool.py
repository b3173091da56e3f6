"""Celery's pool, in moments in which the stock one ends its worker."""

import os
import subprocess
from itertools import repeat
from types import SimpleNamespace

import pytest
from kombu.asynchronous.hub import Hub

from capataz.worker import pool as pools
from capataz.worker.pool import Pool


@pytest.fixture
def sentinel():
    """What billiard watches of a child: readable once the child has ended."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def test_a_child_that_ended_as_the_connection_was_lost_does_not_take_the_worker_with_it(sentinel):
    hub, pool = Hub(), Pool.__new__(Pool)
    child = SimpleNamespace(_popen=SimpleNamespace(sentinel=sentinel))
    pool._track_child_process(child, hub)
    assert len(hub.readers) == 1

    pool._untrack_child_process(child, hub)  # its end is heard of, and it is not reaped yet
    hub.reset()
    pool._track_child_process(child, hub)  # the consumer is connected again

    assert not hub.readers
    hub.close()


def test_a_child_that_does_not_read_holds_the_event_loop_up_for_a_while_only(monkeypatch):
    monkeypatch.setattr(pools, "READS_WITHIN", 0.3)
    frozen = subprocess.Popen(["sleep", "600"])
    reader, writer = os.pipe()
    child = SimpleNamespace(
        pid=frozen.pid, _is_alive=lambda: frozen.poll() is None, inq=SimpleNamespace(_writer=writer)
    )
    pool = Pool.__new__(Pool)
    pool._active_writers = set()

    pool._flush_writer(child, repeat(None))  # a job of which never a byte more gets through

    assert frozen.wait() == -9
    os.close(reader)
    os.close(writer)
