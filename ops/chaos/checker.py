"""The checker: three records, each of its own, have to tell the same story.

In the manner of Jepsen's total queue: what submitters were told, what handlers wrote about themselves, and
what the database says in the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ops.chaos.faults import KINDS, PROMISES, Injection
from ops.chaos.misbehaviours import DEADLY
from ops.chaos.witness import Run, by_task
from ops.chaos.workload import SUCCEEDED, Asked

FINAL = frozenset({"succeeded", "dead", "cancelled", "expired"})
MISSING = "missing"  # the state of what has no row
# Kinds that run more than once because they shall.
TRIED_AGAIN = frozenset({"failing", "retrying", "misbehaving"})

# Seconds after a fault in which what it did may still hold others up.
AFTERMATH = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """A task as the database has it in the end. ``outcomes`` are those of its attempts, oldest first."""

    id: str
    key: str
    state: str
    outcomes: tuple[str, ...]


@dataclass
class Findings:
    """What the three records say together. Everything in ``faults`` breaks a promise.

    ``recovery`` holds, by kind of fault, the seconds from the fault to the next start of what it cut short.
    """

    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    lost: list[str] = field(default_factory=list)
    finished_twice: list[str] = field(default_factory=list)
    wrong_end: list[str] = field(default_factory=list)
    forgotten_by_api: list[str] = field(default_factory=list)
    started_more_than_once: int = 0
    ended_more_than_once: int = 0
    recovered: int = 0
    ends: dict[str, dict[str, int]] = field(default_factory=dict)  # by kind, then by state
    misbehaviours: dict[str, dict[str, int]] = field(default_factory=dict)  # by what they did, then by state
    recovery: dict[str, list[float]] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether every promise about tasks was kept."""
        return not (self.lost or self.finished_twice or self.wrong_end or self.forgotten_by_api)

    def too_slow(self) -> dict[str, float]:
        """By kind of fault, the 99th percentile of recovery where it is beyond the promise."""
        slow = {kind: percentile(times, 99) for kind, times in self.recovery.items()}
        return {kind: value for kind, value in slow.items() if value > PROMISES[kind]}


def check(
    asked: Sequence[Asked], rows: Iterable[Row], runs: Sequence[Run], injections: Sequence[Injection]
) -> Findings:
    """Compare the records."""
    findings = Findings()
    of_key = {row.key: row for row in rows}
    executions = by_task(runs)
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    misbehaviours: dict[str, Counter[str]] = defaultdict(Counter)
    deadly: list[str] = []
    for each in asked:
        told = each.told.split(":")[0]
        setattr(findings, told, getattr(findings, told) + 1)
        row = of_key.get(each.key)
        if told == "refused" or (told == "unknown" and row is None):
            continue
        state = row.state if row else MISSING
        ends[each.kind][state] += 1
        if each.kind == "misbehaving":
            how = each.task["data"]["how"]
            misbehaviours[how][state] += 1
            deadly += [row.id] if row and how in DEADLY else []
        _check_task(findings, each, row, executions)
        if each.follows and row and row.state == SUCCEEDED:
            following = Asked(each.follows, "following", {}, [SUCCEEDED])
            next_row = of_key.get(each.follows)
            ends["following"][next_row.state if next_row else MISSING] += 1
            _check_task(findings, following, next_row, executions)
    findings.ends = {kind: dict(counts) for kind, counts in sorted(ends.items())}
    findings.misbehaviours = {how: dict(counts) for how, counts in sorted(misbehaviours.items())}
    findings.recovery = recovery_times(executions, injections)
    findings.recovery["child"] += _after_own_deaths([executions.get(task, []) for task in deadly], injections)
    return findings


def _check_task(
    findings: Findings, asked: Asked, row: Row | None, executions: Mapping[str, Sequence[Run]]
) -> None:
    """One task that exists, or ought to."""
    if row is None:
        findings.lost.append(f"{asked.key}: there is no row")
        return
    if any(answered != row.id for answered in asked.ids):
        findings.wrong_end.append(f"{asked.key}: answered as {asked.ids}, and is {row.id}")
    runs = executions.get(row.id, [])
    if row.state not in FINAL:
        findings.lost.append(f"{asked.key}: still {row.state}")
    elif row.state not in asked.ends:
        findings.wrong_end.append(f"{asked.key} ({asked.kind}): {row.state}, not {' or '.join(asked.ends)}")
    elif row.state == SUCCEEDED and not any(run.ended is not None for run in runs):
        findings.lost.append(f"{asked.key}: said to have succeeded, and no execution got to its end")
    succeeded = row.outcomes.count(SUCCEEDED)
    if succeeded > 1 or (succeeded == 1 and row.outcomes[-1] != SUCCEEDED):
        findings.finished_twice.append(f"{asked.key}: {', '.join(row.outcomes)}")
    if row.state == SUCCEEDED and succeeded == 0:
        findings.wrong_end.append(f"{asked.key}: succeeded without an attempt that says so")
    if asked.kind not in TRIED_AGAIN and len(runs) > 1:
        findings.started_more_than_once += 1
        findings.ended_more_than_once += sum(run.ended is not None for run in runs) > 1
    if row.state == SUCCEEDED and {"lost", "given_back"} & set(row.outcomes):
        findings.recovered += 1


def recovery_times(
    executions: Mapping[str, Sequence[Run]], injections: Sequence[Injection]
) -> dict[str, list[float]]:
    """Seconds from each fault to the next start of what it cut short.

    A fault of Redis cuts nothing short: its time is that from Redis' return to the next start of anything.
    """
    times: dict[str, list[float]] = {kind: [] for kind in PROMISES}
    starts = sorted(run.began for runs in executions.values() for run in runs)
    for injection in injections:
        kind = KINDS.get(injection.fault)
        if kind is None or not injection.injected or injection.overlapped:
            continue
        if kind == "redis":
            times[kind] += [began - injection.healed for began in starts if began >= injection.healed][:1]
            continue
        for runs in executions.values():
            times[kind] += _starts_again(runs, injection)
    return times


def _starts_again(runs: Sequence[Run], injection: Injection) -> Iterable[float]:
    """How long after this fault a task ran again that it had cut short."""
    for index, run in enumerate(runs):
        is_victim = run.child in injection.victims or run.worker in injection.victims
        later = [again.began for again in runs[index + 1 :] if again.began > injection.began]
        if is_victim and run.lasted_over(injection.began) and later:
            yield later[0] - injection.began


def _after_own_deaths(tasks: Iterable[Sequence[Run]], injections: Sequence[Injection]) -> Iterable[float]:
    """How long after they had killed their process these tasks ran again, where no fault was in the way."""
    disturbed = [(each.began, each.healed + AFTERMATH) for each in injections if each.injected]
    for runs in tasks:
        for run, again in pairwise(runs):
            if run.failed is None or any(a < again.began and run.failed < b for a, b in disturbed):
                continue
            yield again.began - run.failed


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below or at which so many percent of them lie (nearest rank); 0.0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-len(ordered) * int(percent) // 100) - 1))]
