"""One table of several chaos runs: ``python -m ops.chaos.compare <report.json> ...``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ops.chaos.checker import FINAL, MISSING
from ops.chaos.faults import KINDS

USAGE = "give the report.json of two runs or more"


def as_markdown(reports: Sequence[dict[str, Any]]) -> str:
    """A column for each run. Raises KeyError for what is no report of a chaos run."""
    rows = [
        ["", *(each["circumstances"]["engine"] for each in reports)],
        ["---", *("---:" for _ in reports)],
        *([title, *(str(value(each)) for each in reports)] for title, value in LINES.items()),
        *(
            [
                f"{kind}: seconds to the next start, p50 / p99 / longest",
                *(_times(each, kind) for each in reports),
            ]
            for kind in reports[0]["recoverySeconds"]
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _counted(name: str) -> Callable[[dict[str, Any]], int]:
    def count(report: dict[str, Any]) -> int:
        found = report["findings"][name]
        return found if isinstance(found, int) else len(found)

    return count


def _unended(report: dict[str, Any]) -> int:
    ends = report["findings"]["ends"].values()
    return sum(count for states in ends for state, count in states.items() if state not in (*FINAL, MISSING))


LINES: dict[str, Callable[[dict[str, Any]], int | str]] = {
    "minutes of faults": lambda report: f"{report['circumstances']['seconds'] / 60:.1f}",
    "faults injected": lambda report: sum(each["injected"] for each in report["faults"]),
    "accepted": _counted("accepted"),
    "nobody answered": _counted("unknown"),
    "**lost**, or not ended four minutes later": _counted("lost"),
    "of these: with a row": _unended,
    "**finished twice**": _counted("finished_twice"),
    "ended otherwise than it should": _counted("wrong_end"),
    "ran to its end more than once": _counted("ended_more_than_once"),
}


def _times(report: dict[str, Any], kind: str) -> str:
    times = report["recoverySeconds"][kind]
    if not times["count"]:
        injected = any(each["injected"] and KINDS.get(each["fault"]) == kind for each in report["faults"])
        return "no victim ran again" if injected else "not injected"
    return f"{times['p50']:.1f} / {times['p99']:.1f} / {times['max']:.1f} ({times['count']})"


def main() -> int:
    """Print the table."""
    paths = [Path(each) for each in sys.argv[1:]]
    if len(paths) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        print(as_markdown([json.loads(path.read_text()) for path in paths]), end="")
    except (OSError, ValueError, KeyError) as error:
        print(f"{USAGE}: {error!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
