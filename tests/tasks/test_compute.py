"""What is computed is right, and bounded before it begins."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import pytest

from capataz.errors import InvalidSubmission
from capataz.handlers import RunningTask, find
from tasks.compute import LARGEST_FIBONACCI, LARGEST_SIEVE, MOST_ROUNDS


def run(seen: list[int] | None = None, **data: Any) -> dict[str, Any]:
    """As the platform does it: through the row's JSON text."""
    handler = find("compute")
    task = RunningTask(
        uuid.uuid4(), "compute", 1, 1, lambda percent, _: None if seen is None else seen.append(percent)
    )
    result: dict[str, Any] = handler.function(task, handler.load(handler.parse(data)))
    json.dumps(result, allow_nan=False)
    return result


@pytest.mark.parametrize(
    ("n", "number"), [(0, 0), (1, 1), (2, 1), (10, 55), (35, 9227465), (78, 8944394323791464)]
)
def test_fibonacci(n: int, number: int) -> None:
    assert run(function="fibonacci", n=n) == {"result": number}


def test_a_number_that_readers_would_round_is_text() -> None:
    assert run(function="fibonacci", n=79) == {"result": "14472334024676221"}
    assert len(run(function="fibonacci", n=LARGEST_FIBONACCI)["result"]) == 4180


@pytest.mark.parametrize(
    ("limit", "count", "largest"),
    [(0, 0, None), (1, 0, None), (2, 1, 2), (3, 2, 3), (4, 2, 3), (25, 9, 23), (1_000_000, 78498, 999983)],
)
def test_primes(limit: int, count: int, largest: int | None) -> None:
    assert run(function="primes", limit=limit) == {"result": count, "largest": largest}


def test_rounds_of_a_hash_and_their_progress() -> None:
    seen: list[int] = []
    once = hashlib.sha256("ñ".encode()).digest()
    assert run(function="hash", text="ñ") == {"result": once.hex()}
    expected = once
    for _ in range(99):
        expected = hashlib.sha256(expected).digest()
    assert run(seen, function="hash", text="ñ", rounds=100) == {"result": expected.hex()}
    assert seen == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"function": "fibonacci", "n": LARGEST_FIBONACCI + 1}, "data/fibonacci/n"),
        ({"function": "fibonacci", "n": -1}, "data/fibonacci/n"),
        ({"function": "primes", "limit": LARGEST_SIEVE + 1}, "data/primes/limit"),
        ({"function": "hash", "text": "a", "rounds": MOST_ROUNDS + 1}, "data/hash/rounds"),
        ({"function": "hash", "text": "a", "rounds": 0}, "data/hash/rounds"),
        ({"function": "eval", "n": 1}, "data"),
        ({"n": 1}, "data"),
    ],
)
def test_what_is_unknown_or_too_large_is_refused_at_submission(data: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        run(**data)
    assert refused.value.faults[0].pointer == pointer
