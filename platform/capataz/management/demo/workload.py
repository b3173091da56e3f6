"""The workload: which tasks the demo submits, in which order, and how each must end."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from capataz.management.demo import repertoire
from capataz.management.demo.repertoire import Act, Maker

FEWEST, MOST = 20, 5000
FAILING = 0.1  # the part that is expected to end failed
# Each worker shall hold some of them when one is killed; more would only make the demo longer.
SLEEPERS = 0.1
FEWEST_SLEEPERS, MOST_SLEEPERS = 6, 40
# Each takes three children with it.
MOST_POISON = 3

PRIORITIES: tuple[int | str, ...] = (*range(11), "high", "medium", "low", "alta", "media", "baja")

# What there is one of in every demo; the rest is drawn from ORDINARY, with these weights.
ALWAYS: tuple[Maker, ...] = (
    repertoire.picture,
    repertoire.table,
    repertoire.letter,
    repertoire.retried,
    repertoire.crashed,
    repertoire.compute,
)
ORDINARY: dict[Maker, int] = {
    repertoire.picture: 30,
    repertoire.table: 16,
    repertoire.notes: 4,
    repertoire.copy: 8,
    repertoire.letter: 24,
    repertoire.echo: 12,
    repertoire.compute: 10,
    repertoire.retried: 6,
}
HOPELESS: tuple[Maker, ...] = (repertoire.broken_picture, repertoire.exhausted, repertoire.broken_note)


@dataclass(frozen=True)
class Job:
    """One task to submit, under an id of our own."""

    id: str
    act: Act
    priority: int | str

    def submission(self) -> dict[str, Any]:
        """It as the API takes it."""
        wanted = {"id": self.id, "type": self.act.type, "priority": self.priority, "data": self.act.data}
        return wanted | self.act.options


@dataclass(frozen=True)
class Workload:
    """All jobs of one demo. Long ones are in the second half, when a worker is going to be killed."""

    singles: list[Job]  # submitted one by one, before all others
    first_half: list[Job]
    second_half: list[Job]

    @property
    def jobs(self) -> list[Job]:
        """All of them, in the order of submission."""
        return [*self.singles, *self.first_half, *self.second_half]

    @property
    def expected_failures(self) -> int:
        """How many have to end failed."""
        return sum(job.act.end == "failed" for job in self.jobs)


def make_workload(count: int, seed: int) -> Workload:
    """``count`` jobs, at least FEWEST; the same seed gives the same ones."""
    chance = random.Random(seed)
    number = _Numbering(chance)
    sleepers = [number(repertoire.sleeper) for _ in range(_sleepers(count))]
    singles = [number(repertoire.delayed), number(repertoire.withdrawn)]
    makers = _hopeless(count, chance)
    makers += _ordinary(count - len(sleepers) - len(singles) - len(makers), chance)
    chance.shuffle(makers)
    others = [number(maker) for maker in makers]
    half = len(others) // 2 + 1
    second = [*others[half:], *sleepers]
    chance.shuffle(second)
    return Workload(singles, others[:half], second)


class _Numbering:
    """Makes numbered jobs."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._number = 0

    def __call__(self, maker: Maker) -> Job:
        self._number += 1
        act = maker(self._number, self._chance)
        return Job(f"demo-{self._number:04}", act, self._chance.choice(PRIORITIES))


def _sleepers(count: int) -> int:
    return min(MOST_SLEEPERS, max(FEWEST_SLEEPERS, round(count * SLEEPERS)))


def _hopeless(count: int, chance: random.Random) -> list[Maker]:
    wanted = round(count * FAILING)
    poison = min(MOST_POISON, wanted // 2)
    return [repertoire.poison] * poison + [chance.choice(HOPELESS) for _ in range(wanted - poison)]


def _ordinary(count: int, chance: random.Random) -> list[Maker]:
    drawn = chance.choices(list(ORDINARY), list(ORDINARY.values()), k=count - len(ALWAYS))
    return [*ALWAYS, *drawn]
