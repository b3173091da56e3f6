"""The takeover: killing a worker, and watching its tasks come back."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from datetime import datetime

from capataz.home import Run
from capataz.management.demo.census import Census, HeldTask, Return

# Seconds until the last commit of a killed worker has arrived or never will. Its tasks are taken from it
# only after three looks, one a second.
SETTLING = 0.3
# What a worker has to run before it is worth killing.
FEWEST_RUNNING = 2


@dataclass
class Takeover:
    """One worker that was killed, and what has become of its tasks."""

    name: str
    pid: int
    worker: int
    death: datetime
    held: list[HeldTask]
    returns: list[Return]
    successor: int | None = None  # the pid of the worker that was started in its place

    def look(self, census: Census, run: Run) -> None:
        """See how far it is."""
        self.returns = census.returns([task.id for task in self.held], self.worker, self.death)
        pids = {one.name: one.pid for one in run.processes}
        successor = pids.get(self.name)
        if successor not in (None, self.pid) and successor in census.running_by_pid():
            self.successor = successor

    def is_over(self) -> bool:
        """Whether every task was started again and another worker has taken the place."""
        return self.successor is not None and all(back.started is not None for back in self.returns)

    def opening(self) -> str:
        """What was done, in words."""
        running = sum(task.state == "running" for task in self.held)
        rest = len(self.held) - running
        return (
            f"killed {self.name} (pid {self.pid}) with SIGKILL. "
            f"It held {len(self.held)} tasks: {running} running, {rest} claimed and not started."
        )

    def report(self) -> list[str]:
        """What became of it, a line for each task."""
        lost = sum(back.lost is not None for back in self.returns)
        lines = [f"{lost} attempts of {self.name} are recorded as lost; its tasks were taken over:"]
        backs = {back.id: back for back in self.returns}
        lines += [_line(task, backs[task.id]) for task in self.held if task.id in backs]
        lines.append(f"the supervisor started {self.name} again: pid {self.pid} -> {self.successor}")
        return lines

    def faults(self) -> list[str]:
        """What did not go as promised."""
        faults = []
        if not self.held:
            faults.append(f"{self.name} held no task when it was killed")
        if self.successor is None:
            faults.append(f"{self.name} was not started again")
        backs = {back.id: back for back in self.returns}
        for task in self.held:
            back = backs.get(task.id)
            if back is None or back.started is None:
                faults.append(f"{task.key}, held by {self.name}, was not started again")
            elif task.state == "running" and back.lost is None:
                faults.append(f"the attempt of {task.key} on {self.name} is not recorded as lost")
        return faults


def strike(census: Census, run: Run) -> Takeover | None:
    """Kill the worker that runs most, if every worker is at work now; else do nothing."""
    running = census.running_by_pid()
    names = {one.pid: one.name for one in run.processes if one.name.startswith("worker-")}
    if not names or not all(running.get(pid) for pid in names):
        return None
    pid = max(names, key=lambda pid: running[pid])
    if running[pid] < FEWEST_RUNNING:
        return None
    worker = census.worker_id(pid)
    os.kill(pid, signal.SIGKILL)
    death = census.now()
    time.sleep(SETTLING)
    return Takeover(names[pid], pid, worker, death, census.held_by(worker), [])


def _line(task: HeldTask, back: Return) -> str:
    lost = f"lost after {back.lost:.1f} s" if back.lost is not None else "given back unspent"
    started = (
        f"started again after {back.started:.1f} s by {back.by}" if back.started else "not started again"
    )
    return f"  {task.key}  {task.type:<18}  was {task.state:<8}  {lost}, {started}"
