"""Keeps a set of processes running, and ends every one of them.

docs/decisions/own-supervisor.md says why it is our own. Everything happens in one loop in the main thread,
woken by signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

from capataz import home
from capataz.services import undertaker
from capataz.services.child import Child, ProcessSpec
from capataz.services.errors import StartFailed
from capataz.services.output import Output

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
# Seconds from the beginning of a stop. Workers give their tasks back within ten; a stop takes fifteen.
KILL_AFTER = 12.0
SERVERS_HAVE = 2.5  # more than the others
# A process that lives this long has recovered; one that does not waits longer before each start.
STABLE_AFTER = 10.0
LONGEST_WAIT = 10.0
# A wrapper such as make or uv passes on the Ctrl-C that the terminal has sent us as well.
SAME_KEYSTROKE = 0.2
LOOK_EVERY = 0.1  # seconds, while waiting for a condition

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal asked the platform to stop."""


@dataclass
class Place:
    """One name, and the child that runs under it now."""

    spec: ProcessSpec
    child: Child | None = None
    started_at: float = 0.0
    quick_deaths: int = 0  # in a row
    start_at: float = 0.0  # when the next start is due, while there is no child

    def wait_after_death(self, now: float) -> float:
        """Seconds until the next start: none at first, then 1, 2, 4 ... while it keeps dying young."""
        lived = now - self.started_at
        self.quick_deaths = self.quick_deaths + 1 if lived < STABLE_AFTER else 1
        return 0.0 if self.quick_deaths == 1 else min(2.0 ** (self.quick_deaths - 2), LONGEST_WAIT)


class Supervisor:
    """Runs processes by name, restarts those that die, and leaves nothing behind when it ends.

    Use it as a context manager, in the main thread: leaving the block stops everything. Platform processes
    are stopped first and all at once, servers last. If this process is killed, the children get their death
    signals, and what is left of them after ``kill_after`` seconds is killed.
    """

    def __init__(
        self,
        output: Output,
        on_change: Callable[[list[home.Process]], None] | None = None,
        *,
        kill_after: float = KILL_AFTER,
    ) -> None:
        self._kill_after = kill_after
        self._output = output
        self._on_change = on_change or (lambda processes: None)
        self._places: dict[str, Place] = {}
        self._errand: Child | None = None
        self._stopping_since: float | None = None
        self._kill_now = False
        self._former_handlers: dict[signal.Signals, object] = {}
        self._woken, self._waker = socket.socketpair()
        self._watch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._adopt_orphans()
        self._appoint_watch()
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._former_handlers[number] = signal.signal(number, self._on_stop_signal)
        self._former_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stop()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in self._former_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it to us
            self._woken.close()
            self._waker.close()

    # --- Running ---

    def start(self, spec: ProcessSpec) -> None:
        """Start ``spec`` and keep it running until the stop."""
        self._places[spec.name] = Place(spec)
        self._start(self._places[spec.name])

    def run_to_its_end(self, spec: ProcessSpec) -> int:
        """Run ``spec`` once and give its exit code. Raises Stopped if a signal comes meanwhile."""
        self._errand = errand = self._launch(spec)
        self.wait_until(lambda: errand.returncode is not None)
        assert errand.returncode is not None
        return errand.returncode

    def wait_until(self, condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Whether ``condition`` came true in time; keeps everything running meanwhile.

        Raises Stopped if a signal asks for a stop.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            now = time.monotonic()
            if now >= deadline:
                return False
            self._turn(min(LOOK_EVERY, deadline - now))
            if self._stopping_since is not None:
                raise Stopped
        return True

    def run(self) -> None:
        """Keep everything running until a signal asks for a stop."""
        while self._stopping_since is None:
            self._turn(self._until_next_start())

    def processes(self) -> list[home.Process]:
        """What runs now."""
        places = self._places.values()
        return [home.Process(place.spec.name, place.child.pid) for place in places if place.child]

    def all_alive(self) -> bool:
        """Whether every process is running now."""
        return all(place.child is not None for place in self._places.values())

    def most_quick_deaths(self) -> int:
        """How many times in a row the frailest process has died within STABLE_AFTER seconds of its start."""
        return max((place.quick_deaths for place in self._places.values()), default=0)

    # --- Stopping ---

    def stop(self) -> None:
        """End everything: the platform's processes first, the servers last. Returns when nothing is left."""
        began = self._stopping_since or time.monotonic()
        self._stopping_since = began
        platform = [place for place in self._places.values() if not place.spec.is_server]
        servers = [place for place in self._places.values() if place.spec.is_server]
        self._end(platform, began + self._kill_after)
        self._end(servers, began + self._kill_after + SERVERS_HAVE)
        self._end_descendants()
        self._dismiss_watch()

    def _end_descendants(self) -> None:
        """Kill what left its session and then lost its parent: as its adoptive parent we know it."""
        for process in psutil.Process().children(recursive=True):
            if self._watch is None or process.pid != self._watch.pid:
                process.kill()
        if not self._until_reaped(seconds=5):
            self._output.say("some processes hang in the kernel and could not be killed")

    def _until_reaped(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while [
            one for one in psutil.Process().children() if self._watch is None or one.pid != self._watch.pid
        ]:
            if time.monotonic() > deadline:
                return False
            self._turn(LOOK_EVERY)
        return True

    def _end(self, places: list[Place], kill_at: float) -> None:
        children = [place.child for place in places if place.child]
        if self._errand:
            children.append(self._errand)
        for child in children:
            child.send(child.spec.stop_signal)
        while any(child.returncode is None for child in children):
            if self._kill_now or time.monotonic() >= kill_at:
                for child in children:
                    child.kill()
            self._turn(LOOK_EVERY)

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
        elif number == signal.SIGINT and now - self._stopping_since > SAME_KEYSTROKE:
            self._kill_now = True

    # --- One turn of the loop ---

    def _turn(self, seconds: float | None) -> None:
        select.select([self._woken], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        self._reap()
        self._start_what_is_due()

    def _reap(self) -> None:
        """Collect everyone who has ended: our children, and orphans that the kernel has made ours."""
        while ended := self._someone_ended():
            child = self._child(ended)
            if child is not None:
                self._buried(child, child.collect())
            elif self._watch is not None and ended == self._watch.pid:
                self._watch.wait()
                self._appoint_watch()
            else:
                os.waitpid(ended, 0)

    def _someone_ended(self) -> int:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return 0
        return found.si_pid if found else 0

    def _child(self, pid: int) -> Child | None:
        return next((child for child in self._children() if child.pid == pid), None)

    def _children(self) -> list[Child]:
        children = [self._errand, *(place.child for place in self._places.values())]
        return [child for child in children if child is not None]

    def _buried(self, child: Child, returncode: int) -> None:
        self._tell_watch(f"-{child.pid}")
        if child is self._errand:
            self._errand = None
            return
        place = self._places[child.spec.name]
        place.child = None
        if self._stopping_since is None:
            now = time.monotonic()
            wait = place.wait_after_death(now)
            place.start_at = now + wait
            when = f"in {wait:.0f} s" if wait else "now"
            self._output.say(f"{child.spec.name} {_how_it_ended(returncode)}; starting it again {when}")
        self._on_change(self.processes())

    def _start_what_is_due(self) -> None:
        for place in self._places.values():
            if place.child is None and self._stopping_since is None and time.monotonic() >= place.start_at:
                self._start(place)

    def _until_next_start(self) -> float | None:
        due = [place.start_at for place in self._places.values() if place.child is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _start(self, place: Place) -> None:
        place.started_at = time.monotonic()
        try:
            place.child = self._launch(place.spec)
        except (OSError, StartFailed) as error:
            wait = place.wait_after_death(place.started_at) or 1.0
            place.start_at = place.started_at + wait
            self._output.say(f"{place.spec.name} cannot be started: {error}; trying again in {wait:.0f} s")
            return
        self._on_change(self.processes())

    def _launch(self, spec: ProcessSpec) -> Child:
        if spec.prepare:
            spec.prepare()
        child = Child.start(spec, subprocess.PIPE)
        self._output.follow(spec.name, child.output)
        self._tell_watch(_registration(child))
        return child

    # --- When we are killed ---

    def _adopt_orphans(self) -> None:
        """Become the parent of what our children leave behind: we collect it even where init does not."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _appoint_watch(self) -> None:
        self._watch = _start_undertaker(
            [_registration(child) for child in self._children()], self._kill_after
        )

    def _tell_watch(self, line: str) -> None:
        if self._watch is None:
            return
        assert self._watch.stdin is not None
        try:
            self._watch.stdin.write(line + "\n")
            self._watch.stdin.flush()
        except BrokenPipeError:  # it was killed: its successor is told everything
            pass

    def _dismiss_watch(self) -> None:
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait()
            self._watch = None


def _registration(child: Child) -> str:
    return f"+{child.pid} {home.start_time(child.pid) or 0}"


def _start_undertaker(leaders: list[str], kill_after: float) -> subprocess.Popen[str]:
    script = Path(undertaker.__file__)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), str(kill_after), *leaders],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
        start_new_session=True,  # a Ctrl-C is not for it
    )


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    return f"was ended by {signal.Signals(-returncode).name}"
