"""The heartbeat: when it takes its own worker for one that hangs."""

from types import SimpleNamespace
from typing import Any

import pytest

from capataz.lifecycle import presence
from capataz.lifecycle.presence import Sign
from capataz.worker import heartbeat
from capataz.worker.heartbeat import Heartbeat


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """Beat once with each of these (phase, seconds for which the loop was silent); returns how many times the
    worker was found to hang."""
    settings.HUNG = 60.0
    monkeypatch.setattr(presence, "beat", lambda *_: True)
    monkeypatch.setattr(heartbeat, "faulthandler", SimpleNamespace(dump_traceback=lambda _: None))

    def nothing(*_: Any) -> Any:
        """Whoever would hear of it is not there."""

    def beat(*signs: tuple[str, float]) -> int:
        found: list[bool] = []
        left = iter([Sign(phase=phase, loop_lag=lag) for phase, lag in signs])
        made = Heartbeat(
            nothing,
            lambda: next(left),
            on_new_identity=nothing,
            on_hung=lambda: found.append(True),
            on_deaf=nothing,
            on_beat=nothing,
            processes=1,
        )
        monkeypatch.setattr(made.session, "connection", lambda: None)
        for _ in signs:
            made._beat()
        return len(found)

    return beat


def test_a_loop_that_is_silent_for_a_minute_at_two_beats_hangs(beats: Any) -> None:
    assert beats(("running", 60.5), ("running", 61.5)) == 1


@pytest.mark.parametrize(
    "signs",
    [
        [("running", 59.0), ("running", 59.9)],
        [("running", 3600.0), ("running", 0.0), ("running", 3600.0)],  # the whole machine has slept, twice
        [("connecting", 90.0), ("connecting", 91.0)],  # no loop turns without Redis
        [("draining", 90.0), ("draining", 91.0)],  # nor in a stop
    ],
)
def test_whatever_else_is_silent_does_not(beats: Any, signs: list[tuple[str, float]]) -> None:
    assert beats(*signs) == 0
