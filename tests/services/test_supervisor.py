"""The supervisor keeps processes running and leaves nothing behind, however it ends."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from capataz import home
from capataz.services.child import ProcessSpec
from capataz.services.launcher import wrapped
from capataz.services.supervisor import LONGEST_WAIT, Place
from capataz.services.waiting import eventually
from tests.processes import PATIENCE

SUPERVISED = Path(__file__).with_name("supervised.py")

SLEEPS = "import time; time.sleep(600)"
FORKS = """
import os, time
if os.fork() == 0:
    open("{pids}", "a").write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
# Ignores every polite request, and so does what it forks.
STUBBORN = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.fork()
open("{pids}", "a").write(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
# Leaves its session, as daemons do.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("{pids}", "a").write(f"{{os.getpid()}}\\n")
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
# Takes its time to stop and says when it has.
TELLS_WHEN_IT_STOPS = """
import signal, sys, time
def stop(number, frame):
    time.sleep({seconds})
    open("{order}", "a").write("{name}\\n")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
open("{order}.{name}", "w").close()
time.sleep(600)
"""
COUNTS_ITS_STARTS = """
import time
open("{starts}", "a").write(f"{{time.time()}}\\n")
raise SystemExit(3)
"""


def python(name: str, code: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "argv": [sys.executable, "-c", code], **more}


class Supervised:
    """The supervisor under test, with what it runs."""

    def __init__(self, place: Path, *processes: dict[str, Any], close: str = "") -> None:
        self.place = place
        command = [sys.executable, str(SUPERVISED), str(place), json.dumps(processes)]
        if close:
            command = ["sh", "-c", f'exec "$@" {close}', "sh", *command]
        # Not with SIGHUP ignored, which it would keep to, because somebody started the tests with nohup.
        command = wrapped(command, signal.SIGKILL, None)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def pids(self) -> dict[str, int]:
        """The pids of what runs now, by name."""
        try:
            found = json.loads((self.place / "processes.json").read_text())
        except FileNotFoundError:
            return {}
        return {process["name"]: process["pid"] for process in found}

    def runs(self, *names: str) -> bool:
        """Whether exactly these run, and are past the moment of their start."""
        pids = self.pids
        return set(pids) == set(names) and all(_is_python_code(pid) for pid in pids.values())

    def descendants(self) -> list[int]:
        """Every process below the supervisor, the one that watches over its death included."""
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def ends(self, number: signal.Signals) -> float:
        """Send a signal, wait for the end, and say how many seconds it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return time.monotonic() - began

    def output(self) -> str:
        """What it has printed, after its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read()


def _is_python_code(pid: int) -> bool:
    try:
        return "-c" in psutil.Process(pid).cmdline()[:2]
    except psutil.Error:
        return False


def is_gone(pid: int) -> bool:
    return home.start_time(pid) is None


def all_gone(pids: list[int]) -> bool:
    return all(is_gone(pid) for pid in pids)


def numbers(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def pids_in(path: Path) -> list[int]:
    return [int(number) for number in numbers(path)]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Any]:
    started: list[Supervised] = []

    def start(*processes: dict[str, Any], close: str = "") -> Supervised:
        started.append(Supervised(tmp_path, *processes, close=close))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.ends(signal.SIGTERM)
        if one.process.stdout:
            one.process.stdout.close()


def test_a_killed_process_is_started_again_at_once(supervise: Any) -> None:
    supervised = supervise(python("one", SLEEPS), python("other", SLEEPS))
    assert eventually(lambda: supervised.runs("one", "other"), PATIENCE)
    before = supervised.pids

    os.kill(before["one"], signal.SIGKILL)

    assert eventually(lambda: supervised.runs("one", "other") and supervised.pids != before, PATIENCE)
    assert supervised.pids["other"] == before["other"]
    assert supervised.pids["one"] != before["one"]
    supervised.ends(signal.SIGTERM)
    assert "one was ended by SIGKILL; starting it again now" in supervised.output()


def test_a_process_that_keeps_dying_is_started_less_and_less_often(supervise: Any, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    supervise(python("frail", COUNTS_ITS_STARTS.format(starts=starts)))
    assert eventually(lambda: len(numbers(starts)) >= 5, PATIENCE)
    times = numbers(starts)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[1] >= 0.9
    assert gaps[2] >= 1.9
    assert gaps[3] >= 3.9


def test_the_wait_grows_to_its_longest_and_begins_anew_after_a_stable_life() -> None:
    place = Place(ProcessSpec("frail", ["false"]))
    assert [place.wait_after_death(now=1.0) for _ in range(7)] == [0, 1, 2, 4, 8, LONGEST_WAIT, LONGEST_WAIT]
    assert place.wait_after_death(now=1000.0) == 0


def test_what_a_killed_process_has_forked_dies_with_it(supervise: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(python("worker", FORKS.format(pids=pids)))
    assert eventually(lambda: len(pids_in(pids)) == 1, PATIENCE)
    [forked] = pids_in(pids)
    os.kill(supervised.pids["worker"], signal.SIGKILL)
    assert eventually(lambda: is_gone(forked), PATIENCE)
    assert eventually(lambda: len(pids_in(pids)) == 2, PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_everything(supervise: Any, number: signal.Signals) -> None:
    supervised = supervise(python("one", SLEEPS), python("server", SLEEPS, is_server=True))
    assert eventually(lambda: supervised.runs("one", "server"), PATIENCE)
    everyone = supervised.descendants()
    assert len(everyone) == 3
    supervised.ends(number)
    assert supervised.process.returncode == 0
    assert all_gone(everyone)


def test_servers_are_stopped_when_the_platform_has_ended(supervise: Any, tmp_path: Path) -> None:
    order = tmp_path / "order"
    slow = TELLS_WHEN_IT_STOPS.format(name="slow", seconds=2, order=order)
    quick = TELLS_WHEN_IT_STOPS.format(name="quick", seconds=0, order=order)
    server = TELLS_WHEN_IT_STOPS.format(name="server", seconds=0, order=order)
    supervised = supervise(
        python("server", server, is_server=True), python("slow", slow), python("quick", quick)
    )
    ready = [Path(f"{order}.{name}") for name in ("slow", "quick", "server")]
    assert eventually(lambda: all(path.exists() for path in ready), PATIENCE)
    supervised.ends(signal.SIGTERM)
    assert order.read_text().split() == ["quick", "slow", "server"]


def test_who_does_not_stop_is_killed_with_all_that_it_forked_within_fifteen_seconds(
    supervise: Any, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(python("stubborn", STUBBORN.format(pids=pids)))
    assert eventually(lambda: len(pids_in(pids)) == 2, PATIENCE)
    began = time.monotonic()
    supervised.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: all_gone(pids_in(pids)), PATIENCE)
    assert 11 < time.monotonic() - began < 15
    supervised.process.wait(PATIENCE)


def test_a_second_interrupt_kills_at_once(supervise: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(python("stubborn", STUBBORN.format(pids=pids)), python("one", SLEEPS))
    assert eventually(lambda: len(pids_in(pids)) == 2, PATIENCE)
    supervised.process.send_signal(signal.SIGINT)
    assert eventually(lambda: "one" not in supervised.pids, PATIENCE)
    assert supervised.process.poll() is None
    # A person needs longer than the time within which two signals are one keystroke.
    impatience = time.monotonic() + 0.3
    assert eventually(lambda: time.monotonic() > impatience, PATIENCE)
    assert supervised.ends(signal.SIGINT) < 5
    assert all_gone(pids_in(pids))


def test_one_keystroke_that_arrives_twice_is_no_second_interrupt(supervise: Any, tmp_path: Path) -> None:
    order = tmp_path / "order"
    slow = TELLS_WHEN_IT_STOPS.format(name="slow", seconds=1, order=order)
    supervised = supervise(python("slow", slow))
    assert eventually(Path(f"{order}.slow").exists, PATIENCE)
    supervised.process.send_signal(signal.SIGINT)
    supervised.ends(signal.SIGINT)
    assert order.read_text().split() == ["slow"]


def test_when_the_supervisor_is_killed_nothing_is_left(supervise: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(
        python("one", SLEEPS),
        python("stubborn", STUBBORN.format(pids=pids)),
        python("server", SLEEPS, is_server=True),
    )
    assert eventually(
        lambda: len(pids_in(pids)) == 2 and supervised.runs("one", "stubborn", "server"), PATIENCE
    )
    everyone = supervised.descendants()
    assert len(everyone) == 5
    polite = [supervised.pids["one"], supervised.pids["server"]]
    supervised.process.kill()
    assert eventually(lambda: all_gone(polite), 5)
    assert eventually(lambda: all_gone(everyone), PATIENCE)


def test_the_watch_over_the_supervisors_death_is_replaced_when_it_dies(
    supervise: Any, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(python("stubborn", STUBBORN.format(pids=pids)), python("one", SLEEPS))
    assert eventually(lambda: len(pids_in(pids)) == 2 and supervised.runs("one", "stubborn"), PATIENCE)
    known = [*pids_in(pids), supervised.pids["one"]]
    [watch] = [pid for pid in supervised.descendants() if pid not in known]
    os.kill(watch, signal.SIGKILL)
    assert eventually(
        lambda: len(supervised.descendants()) == 4 and watch not in supervised.descendants(), PATIENCE
    )
    supervised.process.kill()
    assert eventually(lambda: all_gone(known), PATIENCE)


def test_a_process_that_left_its_session_does_not_survive_the_stop(supervise: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(python("daemon", DAEMON.format(pids=pids)))
    assert eventually(lambda: len(pids_in(pids)) == 1, PATIENCE)
    supervised.ends(signal.SIGTERM)
    assert all_gone(pids_in(pids))


def test_output_carries_the_name_and_is_kept_in_a_file(supervise: Any, tmp_path: Path) -> None:
    talks = "import sys, time; print('hello'); print('trouble', file=sys.stderr, flush=True)\n" + SLEEPS
    supervised = supervise({**python("talker", talks), "argv": [sys.executable, "-u", "-c", talks]})
    log = tmp_path / "logs" / "talker.log"
    assert eventually(lambda: log.exists() and "trouble" in log.read_text(), PATIENCE)
    supervised.ends(signal.SIGTERM)
    printed = supervised.output().splitlines()
    assert "talker     | hello" in printed
    assert "talker     | trouble" in printed
    assert log.read_text().splitlines() == ["hello", "trouble"]


def test_a_program_that_does_not_exist_is_named(supervise: Any, tmp_path: Path) -> None:
    supervised = supervise({"name": "missing", "argv": ["/nowhere/program"]})
    log = tmp_path / "logs" / "missing.log"
    # The second attempt follows when the first has been noticed.
    assert eventually(lambda: log.exists() and log.read_text().count("/nowhere/program") == 2, PATIENCE)
    supervised.ends(signal.SIGTERM)
    assert "missing ended with exit code 1" in supervised.output()


def test_a_step_runs_to_its_end_before_the_next(supervise: Any) -> None:
    supervised = supervise(python("step", "raise SystemExit(3)", once=True), python("one", SLEEPS))
    assert eventually(lambda: supervised.runs("one"), PATIENCE)
    supervised.ends(signal.SIGTERM)
    assert "step gave 3" in supervised.output()


def test_a_signal_during_a_step_stops_the_step_too(supervise: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervised = supervise(
        python("server", SLEEPS, is_server=True), python("step", FORKS.format(pids=pids), once=True)
    )
    assert eventually(lambda: len(pids_in(pids)) == 1, PATIENCE)
    everyone = supervised.descendants()
    supervised.ends(signal.SIGTERM)
    assert "was stopped meanwhile" in supervised.output()
    assert all_gone(everyone)


def test_a_console_that_nobody_reads_holds_nobody_up(supervise: Any, tmp_path: Path) -> None:
    done = tmp_path / "done"
    talks = f"""
import sys, time
for number in range(50_000):
    print(number, "x" * 100)
sys.stdout.flush()
open({str(done)!r}, "w").close()
time.sleep(600)
"""
    supervised = supervise(python("talker", talks))
    assert eventually(done.exists, PATIENCE)
    log = tmp_path / "logs" / "talker.log"
    assert eventually(lambda: "49999 x" in log.read_text(), PATIENCE)
    assert supervised.ends(signal.SIGTERM) < 10


def test_a_console_that_was_closed_holds_nobody_up(supervise: Any) -> None:
    supervised = supervise(python("talker", "while True: print('hello', flush=True)"))
    assert supervised.process.stdout is not None
    assert supervised.process.stdout.readline()
    supervised.process.stdout.close()
    before = supervised.pids
    assert supervised.ends(signal.SIGTERM) < 10
    assert all_gone(list(before.values()))


@pytest.mark.parametrize("close", ["<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_obstacle(supervise: Any, close: str) -> None:
    supervised = supervise(python("one", SLEEPS), close=close)
    assert eventually(lambda: supervised.runs("one"), PATIENCE)
    everyone = supervised.descendants()
    supervised.ends(signal.SIGTERM)
    assert supervised.process.returncode == 0
    assert all_gone(everyone)
