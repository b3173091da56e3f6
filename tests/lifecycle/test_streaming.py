"""Streaming: many submissions in little memory, at the pace of the queues."""

import asyncio
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction

from capataz.errors import InvalidSubmission, QueueFull
from capataz.lifecycle import limiting, submission
from capataz.lifecycle.streaming import asubmit_stream, submit_stream
from capataz.lifecycle.submission import Submission, submit_many
from capataz.models import Queue, Task

pytestmark = pytest.mark.django_db(transaction=True)


def echoes(count: int, **options: Any) -> Iterator[Submission]:
    return (Submission(type="demo.echo", data={"message": n}, **options) for n in range(count))


def limit(queue: Queue, waiting: int) -> None:
    limiting.limit(queue, waiting=waiting, by="test")


def test_a_stream_is_accepted_chunk_by_chunk_in_its_order() -> None:
    chunks: list[Any] = []
    assert submit_stream(echoes(25), chunk=10, on_accepted=chunks.append) == 25
    assert [len(ids) for ids in chunks] == [10, 10, 5]
    payloads = {task.pk: task.payload["message"] for task in Task.objects.all()}
    assert [payloads[each] for ids in chunks for each in ids] == list(range(25))


def test_a_fault_names_its_place_in_the_whole_stream_and_keeps_what_was_accepted() -> None:
    wrong = [*echoes(12), Submission(type="nope"), *echoes(3)]
    with pytest.raises(InvalidSubmission) as caught:
        submit_stream(wrong, chunk=5)
    assert [fault.pointer for fault in caught.value.faults] == ["tasks/12/type"]
    assert Task.objects.count() == 10


def test_an_asynchronous_stream_is_accepted_too() -> None:
    async def source() -> AsyncIterator[Submission]:
        for each in echoes(7):
            yield each

    async def stream() -> int:
        try:
            return await asubmit_stream(source(), chunk=3)
        finally:
            await sync_to_async(connections.close_all)()

    assert asyncio.run(stream()) == 7
    assert Task.objects.count() == 7


def test_a_stream_needs_transactions_of_its_own() -> None:
    with transaction.atomic(), pytest.raises(RuntimeError):
        submit_stream(echoes(1))


def test_a_full_queue_is_refused_or_waited_for_until_the_timeout(queue: Queue) -> None:
    limit(queue, 3)
    with pytest.raises(QueueFull):
        submit_stream(echoes(5), when_full="refuse")
    assert Task.objects.count() == 0
    began = time.monotonic()
    with pytest.raises(QueueFull):
        submit_stream(echoes(5), timeout=0.3)
    assert time.monotonic() - began >= 0.3
    assert Task.objects.count() == 3


def test_a_stream_goes_on_when_there_is_room_and_holds_no_transaction_meanwhile(queue: Queue) -> None:
    limit(queue, 3)
    idle: list[Any] = []

    def make_room() -> None:
        try:
            while Task.objects.count() < 3:
                time.sleep(0.01)
            with connection.cursor() as cursor:
                for _ in range(20):
                    cursor.execute(
                        "SELECT state FROM pg_stat_activity"
                        " WHERE state LIKE 'idle in%' AND datname = current_database()"
                    )
                    idle.append(cursor.fetchall())
                    time.sleep(0.01)
            Task.objects.all().delete()
        finally:
            connection.close()

    other = threading.Thread(target=make_room)
    other.start()
    assert submit_stream(echoes(5), timeout=60) == 5
    other.join()
    assert [] in idle
    assert Task.objects.count() == 2


def test_many_from_a_generator_are_all_or_none_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "AT_ONCE", 500)
    submit_many(echoes(501))  # what is made once is made
    peaks = []
    for count in (2000, 10000):
        tracemalloc.start()
        ids = submit_many(echoes(count))
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
        assert len(set(ids)) == count
    assert peaks[1] - peaks[0] < 3, peaks  # MiB: the ids, and none of the 8000 rows
    before = Task.objects.count()
    with pytest.raises(InvalidSubmission) as caught:
        submit_many([*echoes(1200), Submission(type="nope"), *echoes(600), Submission(type="no")])
    assert [fault.pointer for fault in caught.value.faults] == ["tasks/1200/type", "tasks/1801/type"]
    assert Task.objects.count() == before


def test_what_others_may_submit_too_goes_in_last_and_comes_back_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "AT_ONCE", 3)
    [old] = submit_many(echoes(1, key="old"))
    wanted = [*echoes(4), *echoes(1, key="old"), *echoes(2, unique_key="u"), *echoes(2)]
    ids = submit_many(wanted)
    assert ids[4] == old
    assert ids[5] == ids[6]
    assert len(set(ids)) == 8
    assert set(ids) == set(Task.objects.values_list("pk", flat=True))
