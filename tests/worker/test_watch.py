"""The watch: what it makes of reports, deaths, limits and orders. Its children are real and die for real."""

import faulthandler
import itertools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capataz import handlers
from capataz.lifecycle.recovery import LOOK
from capataz.servers import ENGINE_SESSION
from capataz.worker import watch
from capataz.worker.channel import Channel
from capataz.worker.child import FAILED, INTERRUPTED, PROGRESS, STEP, SUCCEEDED
from capataz.worker.holding import Bundle, Ended, Ending, Held
from capataz.worker.watch import Watch, cut_off, describe_exit

Fork = Callable[[Callable[[], object]], int]
Behaviour = Callable[[int], Any]

_serials = itertools.count(1)


class Interrupted(BaseException):
    """What a cancelled handler's function meets."""


class Scene:
    """A watch at work, and the bundles and children that it follows."""

    def __init__(self, channel: Channel, fork: Fork, eventually: Callable[..., Any]) -> None:
        self.channel, self._fork, self.eventually = channel, fork, eventually
        self.ended: list[Ended] = []
        self.progress: list[tuple[int, int, str]] = []
        self.told_running = 0
        self.exits: dict[int, int] = {}  # what the pool knows of children that it has reaped
        self.watch = Watch(
            channel,
            on_ended=self.ended.extend,
            on_progress=lambda held, *said: self.progress.append((held.index, *said)),
            on_log=lambda held, *said: None,
            on_running=self._count_running,
            exit_of=self.exits.get,
        )

    def _count_running(self) -> None:
        self.told_running += 1

    def bundle(self, size: int, *, time_limit: float = 300.0, pipe: int = 0) -> Bundle:
        """So many tasks, ready to be taken by a child."""
        made = Bundle(next(_serials), "demo.echo", acknowledge=lambda: None, pipe=pipe, open=size)
        for index in range(size):
            made.items.append(new_held(made, index, time_limit))
        self.watch.follow(made)
        self.channel.tokens[made.pipe].put(made.serial, range(size))
        return made

    def child(self, bundle: Bundle, behaviour: Behaviour) -> int:
        """A child that runs the bundle as ``worker/child.py`` does, each task doing ``behaviour``."""
        return self._fork(lambda: run_bundle(self.channel, bundle, behaviour))

    def until_ended(self, count: int) -> dict[int, Ended]:
        """The first so many ends, by the index of their tasks."""
        self.eventually(lambda: len(self.ended) >= count, every=0.005)
        return {each.held.index: each for each in self.ended}

    def endings(self, bundle: Bundle) -> list[Ending]:
        """How all the tasks of this bundle ended, in their order."""
        ended = self.until_ended(len(bundle.items))
        return [ended[index].ending for index in range(len(bundle.items))]

    def end(self) -> None:
        """Ask the watch to end until it has."""
        self.eventually(lambda: not self.watch.is_alive() or self.watch.stop())

    def until_running(self, bundle: Bundle, index: int = 0) -> None:
        self.eventually(lambda: bundle.current is bundle.items[index], every=0.005)


def new_held(bundle: Bundle, index: int, time_limit: float) -> Held:
    known = handlers.find("demo.echo")
    return Held(
        uuid.uuid4(),
        index + 1,
        known.name,
        known,
        "{}",
        0,
        3,
        0,
        0,
        None,
        time_limit,
        bundle=bundle,
        index=index,
    )


def run_bundle(channel: Channel, bundle: Bundle, behaviour: Behaviour) -> None:
    faulthandler.disable()  # a child that dies on purpose says nothing on our terminal
    pid, tokens, reports = os.getpid(), channel.tokens[bundle.pipe], channel.reports
    signal.signal(signal.SIGUSR2, _interrupt)
    # Met in wait_forever() and nowhere else, as the real child is interrupted in its handler alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    ended: tuple[Any, ...] | None = None
    while (index := tokens.take(bundle.serial)) is not None:
        reports.send((STEP, pid, bundle.serial, ended, (index, time.monotonic())))
        try:
            how, result, error = SUCCEEDED, behaviour(index), None
        except Interrupted:
            how, result, error = INTERRUPTED, None, "interrupted"
        except Exception as failure:
            how, result, error = FAILED, None, str(failure)
        ended = (index, how, result, error, None, True, None, time.monotonic())
    reports.send((STEP, pid, bundle.serial, ended, None))


def _interrupt(*_: Any) -> None:
    raise Interrupted


def wait_forever(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    while True:
        signal.pause()


def succeed(index: int) -> str:
    return str(index)


def after(seconds: float) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def scene(channel: Channel, fork: Fork, eventually: Callable[..., Any]) -> Iterator[Scene]:
    """A watch that has started; children forked by a test come before it, or are as simple as these."""
    made = Scene(channel, fork, eventually)
    made.watch.start()
    yield made
    made.end()


# Reports.


def test_every_task_of_a_bundle_ends_as_its_child_reports(scene: Scene) -> None:
    def odd_ones_fail(index: int) -> str:
        if index % 2:
            raise ValueError(f"boom {index}")
        return f"{index}"

    bundle = scene.bundle(4)
    scene.child(bundle, odd_ones_fail)
    assert scene.endings(bundle) == [Ending.SUCCEEDED, Ending.FAILED] * 2
    ended = scene.until_ended(4)
    assert (ended[0].result, ended[1].error) == ("0", "boom 1")


def test_a_started_task_bears_the_start_that_its_child_saw(scene: Scene) -> None:
    before = time.monotonic()
    bundle = scene.bundle(1)
    scene.child(bundle, succeed)
    ended = scene.until_ended(1)[0]
    assert before <= ended.held.started <= ended.ended <= time.monotonic()


def test_what_runs_now_is_known(scene: Scene) -> None:
    bundle = scene.bundle(2)
    child = scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    assert scene.watch.running() == [bundle.items[0]]
    assert bundle.pid == child


def test_a_task_that_goes_on_is_told_of_once_and_a_short_one_never(scene: Scene) -> None:
    short = scene.bundle(1)
    scene.child(short, succeed)
    scene.endings(short)
    assert scene.told_running == 0
    long = scene.bundle(1, time_limit=0.3)
    scene.child(long, wait_forever)
    scene.eventually(lambda: len(scene.ended) == 2)
    assert scene.told_running == 1


def test_progress_is_passed_on(scene: Scene) -> None:
    bundle = scene.bundle(1)

    def work(index: int) -> None:
        for percent in (10, 90):
            scene.channel.reports.send((PROGRESS, os.getpid(), bundle.serial, index, percent, "working"))

    scene.child(bundle, work)
    scene.until_ended(1)
    assert scene.progress == [(0, 10, "working"), (0, 90, "working")]


def test_reports_about_a_bundle_that_is_forgotten_are_ignored(scene: Scene) -> None:
    gone = scene.bundle(2)
    scene.watch.forget(gone)
    scene.child(gone, succeed)
    other = Bundle(next(_serials), "demo.echo", acknowledge=lambda: None, pipe=1, open=1)
    other.items.append(new_held(other, 0, 300.0))
    scene.watch.follow(other)
    scene.channel.tokens[1].put(other.serial, [0])
    scene.child(other, succeed)
    scene.until_ended(1)
    assert [each.held for each in scene.ended] == other.items


def test_what_a_child_leaves_in_the_pipe_when_its_bundle_is_over_is_given_back(
    scene: Scene, fork: Fork
) -> None:
    """It saw an empty pipe while somebody else held a token that he then put back."""
    bundle = scene.bundle(3)
    reports = scene.channel.reports

    def see_only_the_first() -> None:
        about = (STEP, os.getpid(), bundle.serial)
        index = scene.channel.tokens[bundle.pipe].take(bundle.serial)
        reports.send((*about, None, (index, time.monotonic())))
        reports.send((*about, (index, SUCCEEDED, "1", None, None, True, None, time.monotonic()), None))
        wait_forever(0)  # for its next bundle

    fork(see_only_the_first)
    scene.eventually(lambda: len(scene.ended) == 3, within=15)
    assert scene.endings(bundle) == [Ending.SUCCEEDED, Ending.GIVEN_BACK, Ending.GIVEN_BACK]


# Deaths.


def test_the_death_of_a_child_costs_only_the_task_that_ran(scene: Scene) -> None:
    def second_kills_itself(index: int) -> str:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(index)

    bundle = scene.bundle(4)
    scene.child(bundle, second_kills_itself)
    assert scene.endings(bundle) == [Ending.SUCCEEDED, Ending.LOST, Ending.GIVEN_BACK, Ending.GIVEN_BACK]
    assert scene.until_ended(4)[1].error == "its process died: SIGKILL"


@pytest.mark.parametrize(
    ("end", "said"),
    [(lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"), (lambda: os._exit(42), "exit code 42")],
    ids=["signal", "exit"],
)
def test_a_loss_says_how_its_process_ended(scene: Scene, end: Callable[[], None], said: str) -> None:
    bundle = scene.bundle(1)
    scene.child(bundle, lambda index: end())
    assert scene.until_ended(1)[0].error == f"its process died: {said}"


def test_how_a_child_ended_is_known_although_the_pool_was_faster(
    channel: Channel, fork: Fork, eventually: Callable[..., Any]
) -> None:
    scene = Scene(channel, fork, eventually)
    bundle = scene.bundle(2)
    child = scene.child(bundle, lambda index: os.kill(os.getpid(), signal.SIGBUS))
    scene.exits[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    scene.watch.start()
    assert scene.endings(bundle) == [Ending.LOST, Ending.GIVEN_BACK]
    assert scene.until_ended(2)[0].error == "its process died: SIGBUS"
    scene.end()


def test_what_a_child_reported_before_its_death_counts(scene: Scene) -> None:
    def last_one_dies(index: int) -> str:
        if index == 49:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(index)

    bundle = scene.bundle(50)
    scene.child(bundle, last_one_dies)
    assert scene.endings(bundle) == [Ending.SUCCEEDED] * 49 + [Ending.LOST]


def test_a_death_is_judged_after_the_reports_that_came_before_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch was held up, and finds both at once."""
    gate, opener = os.pipe()
    bundle = scene.bundle(1)
    child = scene.child(bundle, lambda index: os.read(gate, 1).decode())
    scene.until_running(bundle)
    held_up, go_on = threading.Event(), threading.Event()

    def poll_late(patience: float) -> Any:
        held_up.set()
        go_on.wait(60)
        return poll.poll(patience)

    poll = scene.watch._poll
    late = SimpleNamespace(poll=poll_late, register=poll.register, unregister=poll.unregister)
    monkeypatch.setattr(scene.watch, "_poll", late)
    scene.watch.drain(after(3600))  # a reason to look, and then to wait again
    held_up.wait(60)
    os.write(opener, b"1")
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    go_on.set()
    assert scene.endings(bundle) == [Ending.SUCCEEDED]


def test_a_token_that_a_dead_child_took_without_a_word_is_no_attempt(scene: Scene) -> None:
    bundle = scene.bundle(3)

    def take_the_next_and_die(index: int) -> None:
        scene.channel.tokens[0].take(bundle.serial)
        os.kill(os.getpid(), signal.SIGKILL)

    scene.child(bundle, take_the_next_and_die)
    assert scene.endings(bundle) == [Ending.LOST, Ending.GIVEN_BACK, Ending.GIVEN_BACK]
    assert scene.until_ended(3)[1].held.started is None


def test_a_kill_that_comes_late_costs_the_next_task_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = scene.bundle(2)
    bundle.open = 1  # not for being slow
    gate, opener = os.pipe()
    begun, tell = os.pipe()

    def kill_late(pid: int) -> None:
        os.write(opener, b".")
        os.read(begun, 1)
        kill_group(pid)

    def end_just_before_the_kill(index: int) -> None:
        if index == 0:
            os.read(gate, 1)
            return
        os.write(tell, b".")
        wait_forever(index)

    kill_group = watch._kill_group
    monkeypatch.setattr(watch, "_kill_group", kill_late)
    scene.child(bundle, end_just_before_the_kill)
    scene.until_running(bundle)
    scene.watch.stop_run(bundle.items[0], Ending.CANCELLED, "cancelled", grace=0.0)
    assert scene.endings(bundle) == [Ending.SUCCEEDED, Ending.GIVEN_BACK]


def test_a_child_that_is_sent_the_job_of_a_dead_one_again_ends_what_that_one_ran(
    channel: Channel, fork: Fork, eventually: Callable[..., Any]
) -> None:
    """The pool does that, and the next one's report may be read before the death is seen."""
    scene = Scene(channel, fork, eventually)
    bundle = scene.bundle(2)
    dead = scene.child(bundle, lambda index: os.kill(os.getpid(), signal.SIGKILL))
    scene.exits[dead] = os.waitstatus_to_exitcode(os.waitpid(dead, 0)[1])
    os.waitpid(scene.child(bundle, succeed), 0)
    scene.watch.start()
    assert scene.endings(bundle) == [Ending.LOST, Ending.SUCCEEDED]
    scene.end()


def test_a_death_between_two_bundles_costs_nothing(scene: Scene, fork: Fork) -> None:
    bundle = scene.bundle(2)
    child = scene.child(bundle, succeed)
    assert scene.endings(bundle) == [Ending.SUCCEEDED] * 2
    os.waitpid(child, 0)
    second = scene.bundle(1)
    scene.child(second, succeed)
    scene.until_ended(3)
    assert all(each.ending is Ending.SUCCEEDED for each in scene.ended)


def test_a_bundle_that_the_pool_never_started_is_given_back(scene: Scene) -> None:
    bundle = scene.bundle(3)
    scene.watch.abandon(bundle, "WorkerLostError", child_died=True)
    assert scene.endings(bundle) == [Ending.GIVEN_BACK] * 3


def test_a_bundle_that_broke_in_the_pool_fails_what_ran_and_gives_back_the_rest(scene: Scene) -> None:
    bundle = scene.bundle(2)
    scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.abandon(bundle, "EncodeError: no", child_died=False)
    assert scene.endings(bundle) == [Ending.FAILED, Ending.GIVEN_BACK]
    assert "EncodeError" in str(scene.until_ended(2)[0].error)


# Limits.


def test_a_task_past_its_hard_limit_is_killed_and_has_failed(scene: Scene) -> None:
    bundle = scene.bundle(2, time_limit=0.3)
    child = scene.child(bundle, wait_forever)
    assert scene.endings(bundle) == [Ending.FAILED, Ending.GIVEN_BACK]
    assert "hard time limit of 0.3 s" in str(scene.until_ended(2)[0].error)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_hard_limit_counts_from_the_start_of_each_task(scene: Scene) -> None:
    """Together they run longer than one of them may."""
    bundle = scene.bundle(3, time_limit=0.45)
    bundle.open = 1  # so that none is taken back as the others' neighbour
    scene.child(bundle, lambda index: time.sleep(0.25))
    assert scene.endings(bundle) == [Ending.SUCCEEDED] * 3


def test_what_a_killed_task_has_started_dies_with_it(scene: Scene, tmp_path: Path) -> None:
    def start_a_process(index: int) -> None:
        grandchild = os.fork()
        if grandchild == 0:
            wait_forever(index)
        (tmp_path / "pid").write_text(str(grandchild))
        wait_forever(index)

    scene.child(scene.bundle(1, time_limit=0.5), start_a_process)
    scene.until_ended(1)
    grandchild = int((tmp_path / "pid").read_text())
    scene.eventually(lambda: not is_running(grandchild))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_neighbours_of_a_slow_task_go_to_others(scene: Scene) -> None:
    bundle = scene.bundle(4)
    scene.child(bundle, wait_forever)
    ended = scene.until_ended(3)
    assert {index: each.ending for index, each in ended.items()} == dict.fromkeys(
        [1, 2, 3], Ending.GIVEN_BACK
    )
    assert not any(each.counted for each in scene.ended)
    assert scene.watch.running() == [bundle.items[0]]


def test_a_task_that_its_child_has_taken_and_not_reported_yet_is_not_taken_back(scene: Scene) -> None:
    bundle = scene.bundle(3)
    assert scene.channel.tokens[bundle.pipe].take(bundle.serial) == 0  # as a child about to report it
    scene.watch.take_back(bundle)
    scene.until_ended(2)
    assert sorted(each.held.index for each in scene.ended) == [1, 2]


def test_the_neighbours_of_short_tasks_stay_where_they_are(scene: Scene) -> None:
    bundle = scene.bundle(30)
    scene.child(bundle, lambda index: time.sleep(0.01))
    assert scene.endings(bundle) == [Ending.SUCCEEDED] * 30


def test_an_exclusive_task_and_no_other_is_killed_when_its_worker_is_cut_off(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    exclusive, other = scene.bundle(1), scene.bundle(1, pipe=1)
    exclusive.items[0].handler = replace(exclusive.items[0].handler, exclusive=True)
    for bundle in (exclusive, other):
        scene.child(bundle, wait_forever)
        scene.until_running(bundle)
    scene.eventually(lambda: scene.told_running == 2)
    scene.watch.heard()
    assert scene.ended == []
    monkeypatch.setattr(scene.watch, "_heard_at", time.monotonic() - cut_off())
    [ended] = scene.until_ended(1).values()
    assert (ended.held, ended.ending) == (exclusive.items[0], Ending.GIVEN_BACK)
    scene.eventually(lambda: not is_running(exclusive.pid))
    assert scene.watch.running() == other.items


@pytest.mark.parametrize("looks", [3, 15, 600])
def test_an_exclusive_task_is_killed_before_anybody_gives_its_silent_worker_up(
    settings: Any, looks: int
) -> None:
    """For its silence, or after little of it: PostgreSQL drops its session, and with it its lock."""
    settings.LOOKS_WITHOUT_BEAT = looks
    dropped_after = ENGINE_SESSION["tcp_user_timeout"] / 1000
    assert settings.HEARTBEAT < cut_off() < min(looks * LOOK, dropped_after)


# Orders.


def test_a_task_that_has_not_started_is_stopped_at_once(scene: Scene) -> None:
    bundle = scene.bundle(3)
    scene.watch.stop_run(bundle.items[1], Ending.CANCELLED, "cancelled")
    assert scene.until_ended(1)[1].ending is Ending.CANCELLED
    scene.child(bundle, succeed)
    assert scene.endings(bundle) == [Ending.SUCCEEDED, Ending.CANCELLED, Ending.SUCCEEDED]


def test_a_running_task_is_interrupted_and_ends_for_the_reason_given(scene: Scene) -> None:
    bundle = scene.bundle(1)
    child = scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.stop_run(bundle.items[0], Ending.CANCELLED, "because of the test", grace=60)
    ended = scene.until_ended(1)[0]
    assert (ended.ending, ended.error) == (Ending.CANCELLED, "because of the test")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # nobody had to kill it


def test_a_task_that_does_not_let_go_is_killed_after_its_grace(scene: Scene) -> None:
    def let_nobody_interrupt(index: int) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        wait_forever(index)

    bundle = scene.bundle(1)
    child = scene.child(bundle, let_nobody_interrupt)
    scene.until_running(bundle)
    scene.watch.stop_run(bundle.items[0], Ending.CANCELLED, "cancelled", grace=0.2)
    assert scene.endings(bundle) == [Ending.CANCELLED]
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_run_that_was_taken_from_this_worker_is_killed_without_grace(scene: Scene) -> None:
    bundle = scene.bundle(1)
    scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.stop_run(bundle.items[0], Ending.LOST, "taken", grace=0.0)
    assert scene.endings(bundle) == [Ending.LOST]


def test_a_task_that_succeeds_although_it_was_to_be_stopped_has_succeeded(
    scene: Scene, tmp_path: Path
) -> None:
    def finish_when_interrupted(index: int) -> str:
        try:
            wait_forever(index)
        except Interrupted:
            return "done"
        return ""

    bundle = scene.bundle(1)
    scene.child(bundle, finish_when_interrupted)
    scene.until_running(bundle)
    scene.watch.stop_run(bundle.items[0], Ending.CANCELLED, "cancelled", grace=60)
    assert scene.until_ended(1)[0].ending is Ending.SUCCEEDED


def test_the_task_after_a_cancelled_one_is_not_blamed_for_a_late_signal(scene: Scene) -> None:
    bundle = scene.bundle(1)
    child = scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    os.kill(child, signal.SIGUSR2)  # nobody asked for this one's end
    assert scene.endings(bundle) == [Ending.GIVEN_BACK]


def test_taking_back_leaves_what_runs_alone(scene: Scene) -> None:
    bundle = scene.bundle(3)
    bundle.open = 1  # not for being slow
    scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.take_back(bundle)
    scene.until_ended(2)
    assert sorted(each.held.index for each in scene.ended) == [1, 2]


def test_a_stop_is_not_ordered_twice(scene: Scene) -> None:
    bundle = scene.bundle(2)
    for _ in range(3):
        scene.watch.stop_run(bundle.items[0], Ending.CANCELLED, "cancelled")
    scene.watch.take_back(bundle)
    assert scene.endings(bundle) == [Ending.CANCELLED, Ending.GIVEN_BACK]
    assert len(scene.ended) == 2


# Draining.


def test_a_drain_gives_back_at_once_what_has_not_started_and_counts_it(scene: Scene) -> None:
    bundle = scene.bundle(3)
    bundle.open = 1  # not for being slow
    scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.drain(after(3600))
    scene.until_ended(2)
    assert [(each.ending, each.counted) for each in scene.ended] == [(Ending.GIVEN_BACK, True)] * 2
    assert scene.watch.running() == [bundle.items[0]]


def test_a_token_that_was_on_its_way_back_during_a_drain_is_taken_at_the_next_look(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "UNBEGUN", 3600.0)
    bundle = scene.bundle(2)
    tokens = scene.channel.tokens[bundle.pipe]
    assert tokens.take(bundle.serial) == 0
    scene.watch.drain(after(3600))
    [given_back] = scene.until_ended(1)
    assert given_back == 1
    tokens.put(bundle.serial, [0])
    scene.watch.stop_run(bundle.items[given_back], Ending.CANCELLED, "a reason to look")
    assert scene.endings(bundle) == [Ending.GIVEN_BACK] * 2
    assert all(each.counted for each in scene.ended)


def test_a_child_that_dies_of_the_workers_stop_has_lost_nothing(scene: Scene) -> None:
    bundle = scene.bundle(1)
    child = scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.drain(after(3600))
    os.kill(child, signal.SIGKILL)
    assert scene.endings(bundle) == [Ending.GIVEN_BACK]


def test_what_still_runs_when_the_grace_is_over_is_killed_and_given_back(scene: Scene) -> None:
    bundle = scene.bundle(1)
    child = scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.watch.drain(after(0.2))
    ended = scene.until_ended(1)[0]
    assert (ended.ending, ended.counted) == (Ending.GIVEN_BACK, True)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_what_ends_within_the_grace_keeps_its_outcome(scene: Scene, tmp_path: Path) -> None:
    gate, opener = os.pipe()
    bundle = scene.bundle(1)
    scene.child(bundle, lambda index: os.read(gate, 1).decode())
    scene.until_running(bundle)
    scene.watch.drain(after(3600))
    os.write(opener, b"7")
    ended = scene.until_ended(1)[0]
    assert (ended.ending, ended.result) == (Ending.SUCCEEDED, "7")


def test_the_last_reports_are_read_before_the_watch_ends(
    channel: Channel, fork: Fork, eventually: Any
) -> None:
    scene = Scene(channel, fork, eventually)
    bundle = scene.bundle(5)
    os.waitpid(scene.child(bundle, succeed), 0)
    scene.watch.stop()
    scene.watch.start()
    scene.watch.join()
    assert scene.endings(bundle) == [Ending.SUCCEEDED] * 5


def test_a_watch_that_waits_for_something_to_happen_ends_when_it_is_stopped(scene: Scene) -> None:
    """A worker that stops must not sit out its last seconds for a thread that sleeps."""
    bundle = scene.bundle(1)
    scene.child(bundle, wait_forever)
    scene.until_running(bundle)
    scene.eventually(lambda: scene.told_running)  # from here on only an order can wake it
    scene.watch.stop()
    scene.watch.join(timeout=15)
    assert not scene.watch.is_alive()


@pytest.mark.parametrize(
    ("status", "text"),
    [(None, "nobody saw how"), (-9, "SIGKILL"), (-64, "SIGRTMAX"), (-99, "signal 99"), (3, "exit code 3")],
)
def test_an_exit_is_described_in_words(status: int | None, text: str) -> None:
    assert describe_exit(status) == text
