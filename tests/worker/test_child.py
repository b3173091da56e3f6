"""What a pool child does with a bundle: every task has an end of its own. The children are real."""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app
from django.conf import settings

from capataz import handlers
from capataz.errors import Discard, RetryLater
from capataz.policy import exponential, fixed, never
from capataz.worker import child
from capataz.worker.channel import Channel
from capataz.worker.child import FAILED, INTERRUPTED, PROGRESS, SNOOZED, SUCCEEDED, Wear

Act = Callable[..., Any]
Run = Callable[..., list[tuple[Any, ...]]]


class Decision:
    """What a handler decides about its own attempt, beyond an ``except Exception`` of its own."""

    def __init__(self, decide: Act) -> None:
        self.decide = decide

    def __call__(self, task: Any) -> Any:
        try:
            self.decide(task)
        except Exception:
            return "swallowed"


@pytest.fixture
def run(channel: Channel, fork: Callable[[Act], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Have a child run a bundle whose tasks do these things; returns the ends that it has reported."""
    acts: list[Act] = []

    @handlers.handler("test.acts", retry=exponential(on={LookupError: fixed(60), KeyError: never()}))
    def do(task: Any, payload: dict[str, int]) -> Any:
        act = acts[payload["act"]]
        return act(task) if isinstance(act, Decision) else act()

    def bundle(*given: Act, soft: list[float | None] | None = None, wear: Wear | None = None) -> Any:
        acts.extend(given)
        items = [
            (uuid.uuid4().bytes, f'{{"act": {index}}}', 1, 1, soft[index] if soft else None, False)
            for index in range(len(given))
        ]
        channel.tokens[0].put(1, range(len(given)))

        def work() -> None:
            child.attach(channel, wear or Wear())
            child.prepare()
            child.run_bundle(0, 1, "test.acts", items)

        os.waitpid(fork(work), 0)
        steps = [rest for kind, _, _, *rest in channel.reports.receive() if kind != PROGRESS]
        return [ended for ended, _ in steps if ended is not None]

    # The sessions of this process are none of the child's business.
    monkeypatch.setattr(child, "connections", SimpleNamespace(all=lambda **_: []))
    yield bundle
    del handlers._registry["test.acts"]
    current_app.tasks.pop("test.acts", None)


def how(ends: list[tuple[Any, ...]]) -> list[str]:
    return [ended[1] for ended in ends]


def fail() -> None:
    raise RuntimeError("boom")


def wait() -> None:
    time.sleep(30)


@pytest.mark.parametrize("end", [fail, sys.exit, lambda: wait.no_such_name])  # type: ignore[attr-defined]
def test_whatever_a_task_raises_fails_it_alone(run: Run, end: Act) -> None:
    assert how(run(lambda: 1, end, lambda: 3)) == [SUCCEEDED, FAILED, SUCCEEDED]


def test_a_soft_limit_is_each_tasks_own(run: Run) -> None:
    """Together they run longer than one of them may, and after one was stopped the next has all its time."""
    ends = run(*[lambda: time.sleep(0.3)] * 3, wait, lambda: time.sleep(0.3), soft=[0.5] * 5)
    assert how(ends) == [SUCCEEDED] * 3 + [FAILED, SUCCEEDED]
    assert ends[3][3] == "soft time limit exceeded"


def test_a_soft_limit_ends_with_its_task(run: Run) -> None:
    assert how(run(lambda: 1, lambda: time.sleep(0.5), soft=[0.2, None])) == [SUCCEEDED] * 2


def test_a_cancelled_task_says_that_it_was_interrupted(run: Run) -> None:
    assert how(run(lambda: os.kill(os.getpid(), signal.SIGUSR2), lambda: 2)) == [INTERRUPTED, SUCCEEDED]


@pytest.mark.parametrize("excess", [0, 1])
def test_a_result_that_is_too_large_fails_visibly(run: Run, excess: int) -> None:
    quotes = 2
    [ended, after] = run(lambda: "x" * (settings.MAX_RESULT - quotes + excess), lambda: 2)
    assert how([ended, after]) == [FAILED if excess else SUCCEEDED, SUCCEEDED]
    assert (f"at most {settings.MAX_RESULT} are kept" in str(ended[3])) == bool(excess)


def test_a_child_that_is_worn_out_leaves_the_rest_of_its_bundle(run: Run, channel: Channel) -> None:
    assert how(run(*[lambda: 1] * 5, wear=Wear(most_tasks=2))) == [SUCCEEDED] * 2
    assert channel.tokens[0].take_all(1) == [2, 3, 4]


def raising(error: Exception) -> Act:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "how_it_ends", "says", "retryable", "delay"),
    [
        (Decision(lambda task: task.retry_in(7, "busy")), FAILED, "to be tried again in 7 s: busy", True, 7),
        (Decision(lambda task: task.snooze(2.5)), SNOOZED, "snoozed for 2.5 s", True, 2.5),
        (Decision(lambda task: task.discard("no such user")), FAILED, "discarded: no such user", False, 0),
        (raising(Discard("no")), FAILED, "Discard: no", False, None),
        (raising(RetryLater(9, "busy")), FAILED, "RetryLater: busy", True, 9),
        (raising(OSError("gone")), FAILED, "OSError: gone", True, None),
        (raising(IndexError("far")), FAILED, "IndexError: far", True, 60),
        (raising(KeyError("x")), FAILED, "KeyError: 'x'", False, None),
    ],
)
def test_the_child_says_what_the_failure_asks_for(
    run: Run, act: Act, how_it_ends: str, says: str, retryable: bool, delay: float | None
) -> None:
    [ended] = run(act)
    _, *told, _ = ended
    assert (told[0], told[2], *told[4:]) == (how_it_ends, says, retryable, delay)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e9])
def test_a_wait_that_makes_no_sense_is_a_fault_of_the_handler(run: Run, seconds: float) -> None:
    """Its own ``except Exception`` sees it."""
    assert how(run(Decision(lambda task: task.snooze(seconds)))) == [SUCCEEDED]
