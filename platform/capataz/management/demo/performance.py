"""The performance: the demo from its first line to its verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from capataz.home import Run
from capataz.management.demo.census import Census, Moment
from capataz.management.demo.client import Client
from capataz.management.demo.closing_table import closing_table
from capataz.management.demo.errors import DemoFailed, Interrupted
from capataz.management.demo.interruption import Interruption
from capataz.management.demo.screen import Screen
from capataz.management.demo.stage import CONCURRENCY, WORKERS, Stage, Wish, stage
from capataz.management.demo.takeover import Takeover, strike
from capataz.management.demo.verdict import Deliveries, faults_of_tasks
from capataz.management.demo.workload import Workload

FINISHED_WITHIN = 300  # seconds from the first submission
SECOND_HALF_AT, STRIKE_AT = 0.25, 0.35  # parts of all tasks that are done
SHOWN_FAULTS = 30


def perform(wish: Wish, workload: Workload, screen: Screen, interruption: Interruption) -> bool:
    """Show the demo; whether everything ended as it had to.

    Raises Interrupted, and DemoFailed if there are no samples. Whatever happens, nothing runs and nothing
    lies around afterwards, except for the directory if it shall be kept, and the platform's log if something
    went wrong.
    """
    with stage(wish) as platform:
        faults = ["the demo broke down"]
        try:
            faults = _faults(platform, workload, screen, interruption)
        except (DemoFailed, psycopg.Error) as error:
            faults = [str(error)]
        except Interrupted:
            faults = []
            raise
        finally:
            screen.close()
            faults += _stop(platform, screen)
            _tidy(platform, wish, screen, failed=bool(faults))
    _say_verdict(screen, faults)
    return not faults


def _faults(platform: Stage, workload: Workload, screen: Screen, interruption: Interruption) -> list[str]:
    screen.say(f"starting PostgreSQL, Redis and the platform with {WORKERS} workers in {platform.place}")
    began = time.monotonic()
    run = platform.start(interruption)
    screen.say(
        f"ready after {time.monotonic() - began:.1f} s: {run.web}, each worker with {CONCURRENCY} children"
    )
    client = Client(run.web, platform.token(interruption), interruption.check)
    with Census(run.database_url) as census:
        play = _Play(platform, workload, client, census, screen, interruption)
        play.run()
        return play.faults()


@dataclass
class _Play:
    """The part in which there are tasks."""

    platform: Stage
    workload: Workload
    client: Client
    census: Census
    screen: Screen
    interruption: Interruption
    takeover: Takeover | None = None
    overdue: bool = False
    _deadline: float = field(default_factory=lambda: time.monotonic() + FINISHED_WITHIN)

    def run(self) -> None:
        """Submit everything, kill a worker in the middle, and wait for the end."""
        self._submit_first_half()
        self._until(lambda now: now.finished >= SECOND_HALF_AT * self._total)
        self.client.submit_many(self.workload.second_half)
        self.screen.say(f"submitted the other {len(self.workload.second_half)} in bulk")
        self._until(lambda now: self._has_struck(now) or now.finished == self._total)
        self._until(lambda now: self._is_taken_over())
        self._until(lambda now: now.finished == self._total)
        self.screen.metrics(self.census.moment(), len(self.client.living_workers()))

    def faults(self) -> list[str]:
        """The closing table, and what is wrong."""
        jobs = self.workload.jobs
        tasks = {task["key"]: task for task in self.client.tasks() if task["key"]}
        deliveries = Deliveries.of(jobs, self.platform.place, self.platform.sink.messages())
        self.screen.close()
        self.screen.table(closing_table(self.census.summaries(), jobs, deliveries))
        self._say_deliveries(deliveries)
        return [
            *(["not every task ended in time"] if self.overdue else []),
            *faults_of_tasks(jobs, tasks, self.census.successes()),
            *(
                self.takeover.faults()
                if self.takeover
                else ["no worker could be killed while both were busy"]
            ),
            *deliveries.faults(),
        ]

    @property
    def _total(self) -> int:
        return len(self.workload.jobs)

    def _submit_first_half(self) -> None:
        singles, bulk = self.workload.singles, self.workload.first_half
        self.screen.say(
            f"{self._total} tasks, of which {self.workload.expected_failures} are made to fail for good; "
            f"submitting {len(singles)} singly and {len(bulk)} in bulk"
        )
        for job in singles:
            self.client.submit(job)
            if job.act.end == "cancelled":
                self.client.cancel(job)
        self.client.submit_many(bulk)

    def _until(self, condition: Callable[[Moment], bool]) -> None:
        """Show how things stand until ``condition`` comes true, or the time is over."""

        def look() -> bool:
            moment = self.census.moment()
            self.platform.look()
            self.screen.show(self._total, moment, len(self.client.living_workers()))
            return condition(moment)

        left = self._deadline - time.monotonic()
        if not self.interruption.wait_until(look, max(0, left)):
            self.overdue = True

    def _has_struck(self, moment: Moment) -> bool:
        if moment.finished < STRIKE_AT * self._total:
            return False
        self.takeover = strike(self.census, self._run())
        if self.takeover:
            self.screen.say(self.takeover.opening(), style="bold")
        return self.takeover is not None

    def _is_taken_over(self) -> bool:
        if self.takeover is None:
            return True
        self.takeover.look(self.census, self._run())
        if self.takeover.is_over():
            self.screen.say(*self.takeover.report())
        return self.takeover.is_over()

    def _run(self) -> Run:
        return self.platform.run()

    def _say_deliveries(self, deliveries: Deliveries) -> None:
        files, letters = len(deliveries.outputs), len(deliveries.letters)
        self.screen.say(
            f"files: {files - len(deliveries.output_faults)} of {files} are there, open, and are as asked",
            f"e-mails: {letters - len(deliveries.letter_faults)} of {letters} arrived, "
            f"{deliveries.repeated} of them more than once",
        )


def _stop(platform: Stage, screen: Screen) -> list[str]:
    screen.say("stopping the platform")
    return [f"process {pid} of the platform is still there" for pid in platform.stop()]


def _tidy(platform: Stage, wish: Wish, screen: Screen, *, failed: bool) -> None:
    if wish.keep:
        screen.say(f"the data directory is kept: {platform.place}")
    if failed or wish.keep:
        screen.say(f"the platform's log: {platform.log}")
    else:
        with contextlib.suppress(OSError):
            platform.log.unlink()


def _say_verdict(screen: Screen, faults: list[str]) -> None:
    if not faults:
        screen.say("demo passed", style="bold green")
        return
    screen.say("demo failed:", style="bold red")
    screen.say(*(f"  {fault}" for fault in faults[:SHOWN_FAULTS]))
    if len(faults) > SHOWN_FAULTS:
        screen.say(f"  and {len(faults) - SHOWN_FAULTS} more")
