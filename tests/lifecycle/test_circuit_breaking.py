"""Circuits of types: while attempts fail one after the other, the tasks wait and spend none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import F

from capataz.lifecycle import circuit_breaking
from capataz.models import Circuit, CircuitMark, Event, Outcome, Task
from capataz.states import State
from tests.lifecycle.stage import StagedWorker, now, release, tasks, together

TYPE = "testing.circuit"
NAME = f"type:{TYPE}"

Turn = Callable[[], int]


@pytest.fixture(autouse=True)
def large_window(settings: Any, broker: Any, queue: Any) -> None:
    settings.WINDOW = 20.0


def circuit() -> Circuit:
    return Circuit.objects.get(pk=NAME)


def circuit_events() -> list[str]:
    return list(Event.objects.filter(subject=NAME).order_by("id").values_list("kind", flat=True))


def ended(worker: StagedWorker, *which: Task, failed: bool = True, ago: float = 0.001) -> None:
    """These tasks run and end, each saying that to its circuit."""
    grants = worker.run(*which)
    state, outcome = (State.RETRYING, Outcome.FAILED) if failed else (State.SUCCEEDED, Outcome.SUCCEEDED)
    worker.end(grants, state, outcome, failed=failed, type=TYPE, started_ago=ago, delay=3600.0 * failed)


def ripe() -> None:
    """The reset time has passed."""
    Circuit.objects.filter(pk=NAME).update(retry_at=F("changed_at"))


def opened(worker: StagedWorker, turn: Turn) -> None:
    ended(worker, *tasks(3, TYPE))
    turn()
    assert circuit().state == "OPEN"


def released(of: list[Task]) -> int:
    return sum(now(task).released_at is not None for task in of)


def test_failures_in_a_row_open_it_and_its_tasks_wait(worker: StagedWorker, turn: Turn) -> None:
    opened(worker, turn)
    waiting = tasks(5, TYPE)
    others = tasks(2)
    turn()
    assert (released(waiting), released(others)) == (0, 2)
    assert "is open until" in (now(waiting[0]).obstacle() or "")
    assert {now(task).attempts for task in waiting} == {0}
    event = Event.objects.get(kind="circuit.opened")
    assert (event.detail["oldState"], event.detail["newState"]) == ("CLOSED", "OPEN")


def test_a_success_in_between_begins_the_count_anew(worker: StagedWorker, turn: Turn) -> None:
    for failed in (True, True, False, True, True):
        ended(worker, *tasks(1, TYPE), failed=failed)
    turn()
    assert (circuit().state, circuit().failures) == ("CLOSED", 2)


def test_what_was_released_and_not_claimed_is_withdrawn(worker: StagedWorker, turn: Turn) -> None:
    waiting = tasks(4, TYPE)
    release(*waiting)
    opened(worker, turn)
    assert released(waiting) == 0


def test_after_the_reset_time_one_probe_goes_through(
    worker: StagedWorker, new_dispatcher: Callable[[], Any], turn: Turn
) -> None:
    opened(worker, turn)
    waiting = tasks(6, TYPE)
    ripe()
    dispatchers = [new_dispatcher() for _ in range(4)]
    for dispatcher in dispatchers:
        dispatcher.turn()
    assert released(waiting) == 1
    assert "half open" in (now(waiting[-1]).obstacle() or "")
    together(*(dispatcher.turn for dispatcher in dispatchers))
    assert released(waiting) == 1


def test_dispatchers_that_turn_at_once_let_no_more_probes_through_than_declared(
    worker: StagedWorker, new_dispatcher: Callable[[], Any], turn: Turn
) -> None:
    waiting = tasks(3, TYPE) + tasks(3, TYPE, queue="maintenance")
    dispatchers = [new_dispatcher() for _ in range(4)]
    for dispatcher in dispatchers:
        dispatcher.turn()
    for _ in range(5):
        Task.objects.filter(type=TYPE).update(released_at=None, verify_at=None)
        Circuit.objects.filter(pk=NAME).update(
            state="OPEN", changed_at=F("changed_at"), retry_at="2020-01-01T00:00:00Z"
        )
        together(*(dispatcher.turn for dispatcher in dispatchers))
        together(*(dispatcher.turn for dispatcher in dispatchers))
        assert released(waiting) == 1


def test_a_probe_that_succeeds_closes_it(worker: StagedWorker, turn: Turn) -> None:
    opened(worker, turn)
    waiting = tasks(3, TYPE)
    ripe()
    turn()
    [probe] = [task for task in waiting if now(task).released_at]
    ended(worker, probe, failed=False)
    turn()
    assert circuit().state == "CLOSED"
    assert released(waiting[1:]) == 2
    assert circuit_events() == ["circuit.opened", "circuit.halfOpen", "circuit.closed"]


def test_a_probe_that_fails_opens_it_again(worker: StagedWorker, turn: Turn) -> None:
    opened(worker, turn)
    waiting = tasks(3, TYPE)
    ripe()
    turn()
    [probe] = [task for task in waiting if now(task).released_at]
    ended(worker, probe)
    turn()
    assert (circuit().state, circuit().openings) == ("OPEN", 2)
    assert released(waiting) == 0


def test_a_worker_that_dies_with_the_probe_leaves_room_for_another(
    worker: StagedWorker, hire: Callable[..., StagedWorker], turn: Turn, session: Any
) -> None:
    from capataz.lifecycle import recovery

    opened(worker, turn)
    waiting = tasks(2, TYPE)
    ripe()
    turn()
    victim = hire()
    [probe] = [task for task in waiting if now(task).released_at]
    victim.run(probe)
    victim.die()
    row = victim.row()
    assert recovery.bury(session, row.pk, row.heartbeat_at, [], "killed")
    recovery.recover(session, row.pk)
    turn()
    assert released(waiting) == 1
    assert circuit().state == "HALF_OPEN"


def test_attempts_that_began_before_it_was_half_open_say_nothing(worker: StagedWorker, turn: Turn) -> None:
    straggler = tasks(1, TYPE)[0]
    grants = worker.run(straggler)
    opened(worker, turn)
    ripe()
    turn()
    worker.end(grants, failed=False, type=TYPE, started_ago=60.0)
    turn()
    assert circuit().state == "HALF_OPEN"


def test_workers_that_fail_together_open_it_once(
    hire: Callable[..., StagedWorker], new_dispatcher: Callable[[], Any]
) -> None:
    crew = [hire() for _ in range(6)]
    grants = [worker.run(*tasks(2, TYPE)) for worker in crew]
    dispatchers = [new_dispatcher() for _ in range(3)]
    for dispatcher in dispatchers:
        dispatcher.turn()
    together(
        *(
            lambda worker=worker, held=held: worker.end(
                held, State.RETRYING, Outcome.FAILED, failed=True, type=TYPE, started_ago=0.001, delay=3600.0
            )
            for worker, held in zip(crew, grants, strict=True)
        )
    )
    for dispatcher in dispatchers:
        dispatcher._kept_house_at = -1e9
    together(*(dispatcher.turn for dispatcher in dispatchers))
    assert circuit_events() == ["circuit.opened"]
    assert not CircuitMark.objects.exists()


def test_a_finish_that_is_refused_or_undone_marks_nothing(worker: StagedWorker, session: Any) -> None:
    task = tasks(1, TYPE)[0]
    [grant] = worker.run(task)
    with pytest.raises(RuntimeError), worker.connection.transaction():
        worker.end([grant], failed=True, type=TYPE)
        raise RuntimeError("a crash before the commit")
    assert not CircuitMark.objects.exists()
    worker.end([grant], failed=False, type=TYPE)
    worker.end([grant], failed=True, type=TYPE)
    assert list(CircuitMark.objects.values_list("failed", flat=True)) == [False]


def test_types_without_a_circuit_write_no_marks(worker: StagedWorker) -> None:
    worker.end(worker.run(*tasks(2)))
    assert not CircuitMark.objects.exists()


def test_a_circuit_that_was_opened_by_hand_stays_open_until_it_is_reset(
    worker: StagedWorker, turn: Turn
) -> None:
    turn()
    waiting = tasks(2, TYPE)
    turn()
    assert released(waiting) == 2
    circuit_breaking.force_open(circuit(), by="ana", reason="maintenance over there")
    assert released(waiting) == 0
    turn()
    assert released(waiting) == 0
    assert now(waiting[0]).obstacle() == f"the circuit {NAME} was opened by an operator"
    assert Event.objects.get(kind="circuit.opened").detail["by"] == "ana"
    circuit_breaking.reset(circuit(), by="ana")
    turn()
    assert released(waiting) == 2


def test_a_circuit_that_was_closed_by_hand_stays_closed_whatever_fails(
    worker: StagedWorker, turn: Turn
) -> None:
    opened(worker, turn)
    circuit_breaking.force_closed(circuit(), by="ana")
    ended(worker, *tasks(6, TYPE))
    turn()
    assert circuit().state == "CLOSED"
    assert circuit_events()[-1] == "circuit.closed"
