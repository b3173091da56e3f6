"""Compute: work for the CPU that has no place in a web process."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field

from capataz.handlers import RunningTask, handler
from capataz.policy import never
from tasks.payloads import Payload

LARGEST_FIBONACCI = 20_000  # whose number has 4,180 digits, below the 4,300 that Python writes in decimal
LARGEST_SIEVE = 10_000_000  # a byte for each number
MOST_ROUNDS = 10_000_000


class Fibonacci(Payload):
    """The n-th Fibonacci number; that of 0 is 0."""

    function: Literal["fibonacci"]
    n: Annotated[int, Field(ge=0, le=LARGEST_FIBONACCI)]


class Primes(Payload):
    """How many primes there are up to ``limit``, and the largest of them."""

    function: Literal["primes"]
    limit: Annotated[int, Field(ge=0, le=LARGEST_SIEVE)]


class Hash(Payload):
    """SHA-256 of a text in UTF-8, then of each digest in turn, ``rounds`` times in all."""

    function: Literal["hash"]
    text: Annotated[str, Field(max_length=10_000)]
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)] = 1


Computation = Annotated[Fibonacci | Primes | Hash, Field(discriminator="function")]


@handler("compute", payload=Computation, queue="compute", retry=never(), soft_time_limit=50, time_limit=60)
def compute(task: RunningTask, computation: Computation) -> dict[str, Any]:
    """Compute one of the named functions. A number beyond 2^53 is text, which every reader keeps whole."""
    if isinstance(computation, Fibonacci):
        return {"result": _exact(_fibonacci(computation.n))}
    if isinstance(computation, Primes):
        return _primes(computation.limit)
    return {"result": _hash(task, computation)}


def _exact(number: int) -> int | str:
    return number if number < 2**53 else str(number)


def _fibonacci(n: int) -> int:
    last, number = 1, 0
    for _ in range(n):
        last, number = number, last + number
    return number


def _primes(limit: int) -> dict[str, int | None]:
    sieve = bytearray(b"\0\0" + b"\1" * max(0, limit - 1))
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, len(sieve), number)))
    largest = sieve.rfind(1)
    return {"result": sieve.count(1), "largest": None if largest < 0 else largest}


def _hash(task: RunningTask, computation: Hash) -> str:
    value = computation.text.encode()
    tenth = max(1, computation.rounds // 10)
    for number in range(1, computation.rounds + 1):
        value = hashlib.sha256(value).digest()
        if number % tenth == 0:
            task.progress(100 * number // computation.rounds, f"{number} rounds")
    return value.hex()
