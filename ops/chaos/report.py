"""The report: as JSON for machines, as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ops.chaos.checker import Findings, percentile
from ops.chaos.faults import FAULTS, KINDS, PROMISES, Injection
from ops.chaos.misbehaviours import Misbehaviour

MOST_NAMED = 20  # tasks in one list of the page


@dataclass(frozen=True)
class Circumstances:
    """What was run, and for how long."""

    engine: str
    seed: int
    minutes: float
    seconds: float
    submitters: int
    workers: int


def as_json(circumstances: Circumstances, findings: Findings, injections: Sequence[Injection]) -> str:
    """Everything."""
    report: dict[str, Any] = {
        "circumstances": asdict(circumstances),
        "sound": findings.is_sound,
        "findings": asdict(findings),
        "recoverySeconds": {
            kind: {
                "count": len(times), "p50": percentile(times, 50), "p99": percentile(times, 99),
                "max": max(times, default=0.0), "promised": PROMISES[kind],
            }
            for kind, times in findings.recovery.items()
        },
        "faults": [asdict(each) for each in injections],
    }  # fmt: skip
    return json.dumps(report, indent=2)


def as_markdown(circumstances: Circumstances, findings: Findings, injections: Sequence[Injection]) -> str:
    """A page to read."""
    what = circumstances
    lines = [
        f"# Chaos run: {what.engine}, seed {what.seed}",
        "",
        f"{what.seconds / 60:.1f} minutes of faults, {what.submitters} submitters, {what.workers} workers.",
        "",
        "| what became of it | tasks |",
        "| --- | ---: |",
        f"| accepted | {findings.accepted} |",
        f"| refused | {findings.refused} |",
        f"| nobody answered | {findings.unknown} |",
        f"| **lost** | **{len(findings.lost)}** |",
        f"| **finished twice** | **{len(findings.finished_twice)}** |",
        f"| ended otherwise than it should | {len(findings.wrong_end)} |",
        f"| accepted and not known to the API afterwards | {len(findings.forgotten_by_api)} |",
        f"| started more than once, though it never failed | {findings.started_more_than_once} |",
        f"| ran to its end more than once | {findings.ended_more_than_once} |",
        f"| succeeded after a death or a stop | {findings.recovered} |",
        "",
        "| from the fault to the next start | times | p50 s | p99 s | longest s | promised p99 s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, times in findings.recovery.items():
        longest = max(times, default=0.0)
        lines.append(
            f"| {kind} | {len(times)} | {percentile(times, 50):.2f} | {percentile(times, 99):.2f}"
            f" | {longest:.2f} | {PROMISES[kind]:g} |"
        )
    lines += [
        "",
        "| fault | injected | what it promises | not injected, or how |",
        "| --- | ---: | --- | --- |",
    ]
    for name in FAULTS:
        mine = [each for each in injections if each.fault == name]
        notes = "; ".join(sorted({each.note for each in mine if each.note})) or (
            "" if mine else "not asked for"
        )
        count = sum(each.injected for each in mine)
        lines.append(f"| {name} | {count} | {KINDS.get(name, '')} | {notes} |")
    lines += ["", "| kind of task | how they ended |", "| --- | --- |"]
    lines += [f"| {kind} | {_counted(counts)} |" for kind, counts in findings.ends.items()]
    lines += ["", "| what handlers did wrong | how their tasks ended |", "| --- | --- |"]
    lines += [
        f"| {how} | {_counted(findings.misbehaviours.get(how, {}))} |" for how in get_args(Misbehaviour)
    ]
    for title, named in (
        ("Lost", findings.lost),
        ("Finished twice", findings.finished_twice),
        ("Ended otherwise than it should", findings.wrong_end),
        ("Not known to the API", findings.forgotten_by_api),
    ):
        if named:
            lines += ["", f"## {title}", "", *(f"- {each}" for each in named[:MOST_NAMED])]
    return "\n".join(lines) + "\n"


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none was asked for"


def write(
    folder: Path, circumstances: Circumstances, findings: Findings, injections: Sequence[Injection]
) -> None:
    """Both, into this folder."""
    (folder / "report.json").write_text(as_json(circumstances, findings, injections))
    (folder / "report.md").write_text(as_markdown(circumstances, findings, injections))
