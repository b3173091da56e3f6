"""What joins a worker's parent and its children: tokens taken once, reports that arrive whole."""

import os
import signal
import struct
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from capataz.worker.channel import FORGOTTEN, Channel, Tokens, sweep

Fork = Callable[[Callable[[], object]], int]


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


def received(channel: Channel, count: int, eventually: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """The next so many reports."""
    reports: list[tuple[Any, ...]] = []

    def enough() -> bool:
        reports.extend(channel.reports.receive())
        return len(reports) >= count

    eventually(enough, every=0.001)
    return reports


# Tokens.


def test_tokens_are_taken_in_their_order_and_then_no_more(tokens: Tokens) -> None:
    tokens.put(7, range(3))
    assert [tokens.take(7) for _ in range(4)] == [0, 1, 2, None]


def test_what_is_taken_back_can_be_taken_by_nobody_else(tokens: Tokens) -> None:
    tokens.put(7, range(5))
    tokens.take(7)
    assert tokens.take_all(7) == [1, 2, 3, 4]
    assert tokens.take(7) is None


def test_the_largest_bundle_fits_into_a_pipe(tokens: Tokens) -> None:
    tokens.put(2**32 - 1, range(250))
    assert tokens.take_all(2**32 - 1) == list(range(250))


def test_a_token_of_another_bundle_is_put_back(tokens: Tokens) -> None:
    tokens.put(8, [5])
    assert tokens.take(7) is None
    assert tokens.take(8) == 5


def test_eight_children_and_their_parent_take_every_token_exactly_once(
    tokens: Tokens, fork: Fork, tmp_path: Path
) -> None:
    for serial in range(1, 21):
        gate_reader, gate_writer = os.pipe()

        def race(serial: int = serial, gate: int = gate_reader, close: int = gate_writer) -> None:
            os.close(close)
            os.read(gate, 1)  # returns when the parent closes its end
            mine = tokens.take_all(serial)
            (tmp_path / f"{serial}-{os.getpid()}").write_text(" ".join(map(str, mine)))

        children = [fork(race) for _ in range(8)]
        tokens.put(serial, range(250))
        os.close(gate_writer)
        taken = tokens.take_all(serial)
        for child in children:
            os.waitpid(child, 0)
        os.close(gate_reader)
        for file in tmp_path.glob(f"{serial}-*"):
            taken += map(int, file.read_text().split())
        assert Counter(taken) == Counter(range(250))


def test_the_child_of_a_bundle_that_was_taken_back_leaves_the_next_one_alone(
    tokens: Tokens, fork: Fork
) -> None:
    tokens.put(1, range(3))
    assert tokens.take_all(1) == [0, 1, 2]
    tokens.put(2, range(3))
    late = fork(lambda: os._exit(0 if tokens.take(1) is None else 1))
    assert os.waitpid(late, 0)[1] == 0
    assert sorted(tokens.take_all(2)) == [0, 1, 2]


def test_a_token_whose_taker_died_is_gone_for_good(tokens: Tokens, fork: Fork) -> None:
    """Only its taker knows what it has done with it: the watch judges by the reports."""
    tokens.put(1, range(2))
    child = fork(lambda: (tokens.take(1), os.kill(os.getpid(), signal.SIGKILL)))
    os.waitpid(child, 0)
    assert tokens.take_all(1) == [1]


# Reports.


def test_a_report_arrives_as_it_was_sent(channel: Channel) -> None:
    report = ("step", 1, 2, (0, "succeeded", '{"ñ": 1}', None, None, True, 1.5), None)
    channel.reports.send(report)
    assert channel.reports.receive() == [report]


def test_nothing_reported_is_nothing_received(channel: Channel) -> None:
    assert channel.reports.receive() == []


def test_the_reports_of_each_sender_keep_their_order(
    channel: Channel, fork: Fork, eventually: Callable[..., Any]
) -> None:
    def send(sender: int) -> None:
        for number in range(200):
            channel.reports.send((sender, number))

    for sender in range(4):
        fork(lambda sender=sender: send(sender))
    reports = received(channel, 800, eventually)
    for sender in range(4):
        assert [number for who, number in reports if who == sender] == list(range(200))


@pytest.mark.parametrize("size", [0, 60_000, 64 * 1024, 70_000, 1024 * 1024])
def test_a_report_of_any_size_arrives_whole(channel: Channel, size: int) -> None:
    channel.reports.send(("large", "x" * size))
    assert channel.reports.receive() == [("large", "x" * size)]


def test_a_large_report_keeps_its_place_among_small_ones(channel: Channel) -> None:
    reports = [("small", 1), ("large", "x" * 300_000), ("small", 2)]
    for report in reports:
        channel.reports.send(report)
    assert channel.reports.receive() == reports


def test_a_received_report_leaves_no_file_behind(channel: Channel, tmp_path: Path) -> None:
    channel.reports.send(("large", "x" * 300_000))
    assert len(list((tmp_path / "spool").iterdir())) == 1
    channel.reports.receive()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_sender_waits_while_the_parent_is_behind_and_nothing_is_lost(
    channel: Channel, fork: Fork, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    """Far more than the socket holds, and nobody reads until the senders wait."""

    def send(sender: int) -> None:
        for number in range(500):
            channel.reports.send((sender, number, "x" * 10_000))

    children = [fork(lambda sender=sender: send(sender)) for sender in range(2)]
    eventually(lambda: all(psutil.Process(child).status() == psutil.STATUS_SLEEPING for child in children))
    reports = received(channel, 1000, eventually)
    for sender in range(2):
        assert [number for who, number, _ in reports if who == sender] == list(range(500))


def test_what_a_killed_sender_has_sent_arrives(channel: Channel, fork: Fork) -> None:
    def send_and_die() -> None:
        for number in range(5):
            channel.reports.send((number, uuid.UUID(int=number)))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(send_and_die), 0)
    assert [number for number, _ in channel.reports.receive()] == list(range(5))


def test_a_token_is_smaller_than_what_a_pipe_writes_at_once() -> None:
    assert struct.calcsize("=IH") * 250 <= 4096  # PIPE_BUF: a bundle's tokens are one atomic write


def test_only_what_nobody_will_read_is_swept_from_the_spool(tmp_path: Path) -> None:
    forgotten, fresh, foreign = tmp_path / "report-old", tmp_path / "report-new", tmp_path / "notes.txt"
    for path in (forgotten, fresh, foreign):
        path.touch()
    long_ago = time.time() - FORGOTTEN - 1
    for path in (forgotten, foreign):
        os.utime(path, (long_ago, long_ago))
    sweep(tmp_path)
    sweep(tmp_path / "not made yet")
    assert sorted(tmp_path.iterdir()) == [foreign, fresh]
