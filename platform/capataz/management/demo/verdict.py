"""The verdict: whether everything ended as it had to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from capataz.management.demo import outputs
from capataz.management.demo.letters import Letter, Mailbag
from capataz.management.demo.outputs import Output
from capataz.management.demo.workload import Job


@dataclass(frozen=True)
class Deliveries:
    """What tasks had to leave and send, and what is wrong with it."""

    outputs: list[Output]
    letters: list[Letter]
    output_faults: dict[str, str]
    letter_faults: dict[str, str]
    repeated: int
    strangers: list[str]

    @classmethod
    def of(cls, jobs: Sequence[Job], place: Path, messages: list[EmailMessage]) -> Deliveries:
        """Look at everything in this data directory, and at what arrived."""
        files = [job.act.leaves for job in jobs if job.act.leaves]
        letters = [job.act.sends for job in jobs if job.act.sends]
        bag = Mailbag.of(messages)
        return cls(
            outputs=files,
            letters=letters,
            output_faults=outputs.faults(files, place),
            letter_faults=bag.faults(letters, place),
            repeated=bag.repeated(),
            strangers=[*outputs.strangers(files, place), *bag.strangers(letters)],
        )

    def faults(self) -> list[str]:
        """What is wrong, a line each."""
        return [
            *(f"{path} {fault}" for path, fault in self.output_faults.items()),
            *(f"the e-mail {subject!r} {fault}" for subject, fault in self.letter_faults.items()),
            *(f"nobody was to make {each!r}" for each in self.strangers),
        ]

    def count_of(self, jobs: Sequence[Job]) -> tuple[int, int]:
        """How many files and e-mails of these jobs are there and right, and how many have to be."""
        files = [job.act.leaves.path for job in jobs if job.act.leaves]
        letters = [job.act.sends.subject for job in jobs if job.act.sends]
        wrong = len(self.output_faults.keys() & set(files)) + len(self.letter_faults.keys() & set(letters))
        expected = len(files) + len(letters)
        return expected - wrong, expected


def faults_of_tasks(
    jobs: Sequence[Job], tasks: Mapping[str, Mapping[str, Any]], successes: Mapping[str, int]
) -> list[str]:
    """What is wrong with the ends of these jobs: ``tasks`` are the API's, ``successes`` count attempts."""
    faults = []
    for job in jobs:
        task = tasks.get(job.id)
        if task is None:
            faults.append(f"{job.id} ({job.act.type}) is gone")
        elif fault := _fault(job, task, successes.get(job.id, 0)):
            faults.append(f"{job.id} ({job.act.type}) {fault}")
    return faults


def _fault(job: Job, task: Mapping[str, Any], successes: int) -> str:
    if task["status"] != job.act.end:
        return f"is {task['status']}, not {job.act.end}: {task['error'] or 'no error'}"
    if successes != (job.act.end == "completed"):
        return f"is {task['status']} with {successes} successful attempts"
    delay = job.act.options.get("delay", 0)
    if job.act.end == "completed" and task["waitMs"] < delay:
        return f"was to wait {delay} ms and started after {task['waitMs']} ms"
    return ""
