"""Streaming: submitting without end and in bounded memory, at the pace of the queues."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterable, Callable, Iterable
from itertools import islice
from typing import Literal

from asgiref.sync import sync_to_async
from django.db import transaction

from capataz.errors import QueueFull
from capataz.lifecycle.submission import AT_ONCE, Submission, submit_part

FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0

WhenFull = Literal["wait", "refuse"]
Accepted = Callable[[list[uuid.UUID]], object]


def submit_stream(
    submissions: Iterable[Submission],
    *,
    chunk: int = AT_ONCE,
    when_full: WhenFull = "wait",
    timeout: float | None = None,
    on_accepted: Accepted = lambda ids: None,
) -> int:
    """Accept these tasks chunk by chunk, each in a transaction of its own; returns how many submissions.

    ``on_accepted`` is told the ids of each chunk once it is committed. Where a queue is full, wait for room
    without a transaction, for ``timeout`` seconds in all; what fits goes in meanwhile.

    Raises InvalidSubmission, whose pointers count from the first submission, Conflict, and QueueFull at the
    timeout, or at once if ``when_full`` is ``refuse``. What was accepted before stays.
    """
    stream = _Stream(chunk, when_full, timeout, on_accepted)
    given = iter(submissions)
    while stream.fill(list(islice(given, stream.missing))):
        wait = stream.push()
        if wait:
            time.sleep(wait)
    return stream.accepted


async def asubmit_stream(
    submissions: AsyncIterable[Submission],
    *,
    chunk: int = AT_ONCE,
    when_full: WhenFull = "wait",
    timeout: float | None = None,
    on_accepted: Accepted = lambda ids: None,
) -> int:
    """``submit_stream`` for what comes asynchronously."""
    stream = _Stream(chunk, when_full, timeout, on_accepted)
    push = sync_to_async(stream.push)

    async def push_all(at_least: int) -> None:
        while len(stream.pending) >= at_least:
            wait = await push()
            if wait:
                await asyncio.sleep(wait)

    async for each in submissions:
        stream.fill([each])
        await push_all(chunk)
    await push_all(1)
    return stream.accepted


class _Stream:
    """What is to go in next, and how long to wait for room."""

    def __init__(self, chunk: int, when_full: WhenFull, timeout: float | None, on_accepted: Accepted) -> None:
        if not 1 <= chunk <= AT_ONCE:
            raise ValueError(f"chunk must be 1 to {AT_ONCE}, not {chunk}")
        if when_full not in ("wait", "refuse"):
            raise ValueError(f"when_full must be wait or refuse, not {when_full!r}")
        self.pending: list[Submission] = []
        self.accepted = 0
        self._chunk = chunk
        self._refuses = when_full == "refuse"
        self._patience = timeout
        self._on_accepted = on_accepted
        self._wait = FIRST_WAIT

    @property
    def missing(self) -> int:
        return self._chunk - len(self.pending)

    def fill(self, more: list[Submission]) -> bool:
        """Whether anything is to go in."""
        self.pending += more
        return bool(self.pending)

    def push(self) -> float:
        """Submit what there is room for; returns the seconds to wait before the next time.

        Raises QueueFull if that is longer than it may be.
        """
        try:
            self._submit(len(self.pending))
        except QueueFull as full:
            room = full.limit - full.waiting
            if 0 < room < len(self.pending) and not self._refuses:
                return self._push_some(room)
            return self._pause(full)
        return 0

    def _push_some(self, room: int) -> float:
        try:
            self._submit(room)
        except QueueFull as full:  # somebody was faster, or another queue is full
            return self._pause(full)
        return 0

    def _submit(self, count: int) -> None:
        with transaction.atomic(durable=True):
            ids = submit_part(self.pending[:count], self.accepted)
        del self.pending[:count]
        self.accepted += count
        self._wait = FIRST_WAIT
        self._on_accepted(ids)

    def _pause(self, full: QueueFull) -> float:
        wait = self._wait
        if self._patience is not None:
            wait = min(wait, self._patience)
            self._patience -= wait
        if self._refuses or wait <= 0:
            raise full
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        return wait
