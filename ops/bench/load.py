"""What a big backlog and a big history cost: ratios against an empty table, in one run.

    python -m ops.bench.load [--tasks 1000000] [--rounds 3] [--again] [--json FILE]

Starts a PostgreSQL and a Redis of its own with two databases: one empty, one in which so many tasks wait.
Submits to both, executes on both with the real dispatcher and worker, in turn, and compares medians. Then
all that waits is finished, and pruned while tasks are claimed: claims beside pruning are compared with
claims alone, and the tables' sizes afterwards with those before. Only ratios inside one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from capataz.services.embedded import Servers, embedded
from ops.bench.price import (
    OURS,
    ROOT,
    WARM_UP,
    Contestant,
    cpu,
    fresh_database,
    running,
    server_pids,
    without_configured_servers,
)

STANDING = 20_000  # finished tasks that are there before and after, so that sizes can be compared
QUIET, BESIDE = 10.0, 30.0  # seconds of claims, alone and beside pruning, in turn
PATIENCE = 3600
REDIS_LIMIT = 50.0  # MB
TABLES = ("capataz_task", "django_celery_results_taskresult")


@dataclass
class Side:
    """One of the two databases, and what was measured on it."""

    name: str
    environment: dict[str, str]
    contestant: Contestant
    measured: dict[str, list[float]] = field(default_factory=dict)

    def step(self, name: str, *numbers: float) -> dict[str, Any]:
        """What a step of ops/bench/load_client.py reports."""
        return _report(self.start(name, *numbers))

    def start(self, name: str, *numbers: float) -> subprocess.Popen[bytes]:
        """Begin a step."""
        command = [sys.executable, "-m", "ops.bench.load_client", name, *map(json.dumps, numbers)]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE)

    def note(self, **values: float) -> None:
        """Keep what one round came to."""
        for name, value in values.items():
            self.measured.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Over the rounds."""
        return statistics.median(self.measured[name])


def main() -> None:
    """Run it all and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1_000_000, help="how many wait (1,000,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--executed", type=int, default=3000, help="tasks executed in a round (3,000)")
    parser.add_argument(
        "--again", action="store_true", help="the same number again afterwards: is the space used again?"
    )
    parser.add_argument("--json", type=Path, help="write the measurements there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capataz-load-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with without_configured_servers(), embedded(folder / "servers") as servers:
            result = _run(options, servers, folder)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


def _run(options: argparse.Namespace, servers: Servers, folder: Path) -> dict[str, Any]:
    empty, full = (_side(name, number, servers, folder) for number, name in enumerate(("empty", "full"), 1))
    for side in (empty, full):
        side.step("prepare")
    full.step("fill", STANDING)
    full.step("drain")
    sizes = {"before": _sizes(full, vacuum=True)}
    _say(f"{options.tasks:,} tasks are submitted")
    full.step("fill", options.tasks)
    sizes["with all waiting"] = _sizes(full)
    memory = 0.0
    for number in range(options.rounds):
        for side in (empty, full):
            _say(f"round {number + 1}/{options.rounds}: {side.name}")
            memory = max(memory, _round(side, servers, folder, options.executed))
    print(_backlog_table(empty, full, options.tasks, memory), flush=True)

    _say("all that waits is finished")
    full.step("drain")
    drained_at = time.time()
    sizes["all finished"] = _sizes(full)
    full.step("fill", max(STANDING, options.tasks // 8))
    quiet, pruning, deleted = _prune(full, drained_at)
    print(_pruning_table(quiet, pruning, deleted), flush=True)
    sizes["pruned"] = _sizes(full, vacuum=True)
    _say("the younger ones are finished and pruned too")
    full.step("drain")
    _prune_all(full)
    sizes["younger pruned too"] = _sizes(full, vacuum=True)
    if options.again:
        _say("the same number again")
        full.step("fill", options.tasks)
        full.step("drain")
        sizes["as many again"] = _sizes(full)
        _prune_all(full)
        sizes["pruned again"] = _sizes(full, vacuum=True)
    _execute(full, *(f"REINDEX TABLE CONCURRENTLY {table}" for table in TABLES))
    sizes["indexes rebuilt"] = _sizes(full)
    print(_size_table(sizes), flush=True)
    return {
        "tasks": options.tasks,
        "empty": empty.measured,
        "full": full.measured,
        "redis_mb": memory,
        "quiet": quiet,
        "pruning": pruning,
        "deleted": deleted,
        "sizes": sizes,
    }


def _side(name: str, number: int, servers: Servers, folder: Path) -> Side:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "capataz.settings",
        "DATABASE_URL": fresh_database(servers.database_url),
        "REDIS_URL": servers.redis_url.rsplit("/", 1)[0] + f"/{number}",
        "CAPATAZ_HOME": str(folder / "home"),
        "CAPATAZ_DEMO": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
    }
    return Side(name, environment, Contestant(name, "capataz.settings", OURS, redis_db=number))


def _round(side: Side, servers: Servers, folder: Path, tasks: int) -> float:
    """Measure everything once on this side; returns the most megabytes that Redis took."""
    side.note(**side.step("submission", 2000))
    side.note(**side.step("turns"))
    side.note(**side.step("looks"))
    with running(side.contestant, side.environment, folder, False) as pids:
        side.step("execution_of", WARM_UP)
        families = [*pids, *server_pids(servers)]
        before = cpu(families)
        process = side.start("execution_of", tasks)
        most = 0.0
        with redis.Redis.from_url(side.environment["REDIS_URL"]) as client:
            while process.poll() is None:
                most = max(most, client.info("memory")["used_memory"] / 1e6)
                time.sleep(0.2)
        side.note(execute_us=1e6 * (cpu(families) - before) / tasks, redis_mb=most)
        _report(process)
    return most


def _prune_all(side: Side) -> None:
    """All that has finished goes, and the next STANDING come."""
    side.step("prune_all")
    _execute(side, *(f"VACUUM {table}" for table in TABLES))
    side.step("fill", STANDING)
    side.step("drain")


def _prune(side: Side, before: float) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Prune in slices, with a quiet slice before each: the claims of both kinds, and how many tasks went."""
    quiet: dict[str, list[float]] = {"claim_ms": [], "finish_ms": []}
    beside: dict[str, list[float]] = {"claim_ms": [], "finish_ms": []}
    deleted, is_over = 0, False
    while not is_over:
        _add(quiet, side.step("claims", QUIET))
        pruning = side.start("prune", before, BESIDE)
        claims = side.start("claims", BESIDE)
        report = _report(pruning)
        deleted, is_over = deleted + report["deleted"], report["all"]
        if not is_over or not beside["claim_ms"]:  # a slice that ended early has quiet claims in it
            _add(beside, _report(claims))
        else:
            claims.communicate(timeout=PATIENCE)
        p99 = (_percentile(taken["claim_ms"], 0.99) for taken in (quiet, beside))
        _say("pruned {:,}; claim p99 alone {:.1f} ms, beside pruning {:.1f} ms".format(deleted, *p99))
    return quiet, beside, deleted


def _add(all_taken: dict[str, list[float]], taken: dict[str, list[float]]) -> None:
    for name, values in taken.items():
        all_taken[name] += values


def _report(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise SystemExit(f"{process.args!r} failed")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def _execute(side: Side, *statements: str) -> None:
    with psycopg.connect(side.environment["DATABASE_URL"], autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def _sizes(side: Side, *, vacuum: bool = False) -> dict[str, float]:
    """Megabytes of the tables and of their indexes, after what autovacuum would do."""
    if vacuum:
        _execute(side, *(f"VACUUM (ANALYZE) {table}" for table in TABLES))
    with psycopg.connect(side.environment["DATABASE_URL"]) as connection:
        sizes = {
            f"{table} {part}": connection.execute(
                f"SELECT {function}(%s::regclass) / 1e6::float8", [table]
            ).fetchall()[0][0]
            for table in TABLES
            for part, function in (("heap", "pg_table_size"), ("indexes", "pg_indexes_size"))
        }
    _say("MB: " + ", ".join(f"{part} {size:.1f}" for part, size in sizes.items()))
    return sizes


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what} ...", flush=True)


def _backlog_table(empty: Side, full: Side, tasks: int, memory: float) -> str:
    lines = ["", f"{'':24} {'empty':>12} {f'{tasks:,} wait':>18} {'ratio':>7}"]
    for name in empty.measured:
        one, other = empty.median(name), full.median(name)
        lines.append(f"{name:24} {one:>12.2f} {other:>18.2f} {other / one:>7.2f}")
    verdict = "yes" if memory < REDIS_LIMIT else "NO"
    lines.append(f"Redis took {memory:.1f} MB at most; below {REDIS_LIMIT:.0f} MB: {verdict}")
    return "\n".join(lines)


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _pruning_table(quiet: dict[str, list[float]], pruning: dict[str, list[float]], deleted: int) -> str:
    title = f"{deleted:,} pruned"
    lines = ["", f"{title:24} {'quiet ms':>10} {'pruning ms':>11} {'ratio':>7} {'samples':>9}"]
    for name, alone in quiet.items():
        for share in (0.5, 0.95, 0.99):
            one, other = _percentile(alone, share), _percentile(pruning[name], share)
            label = f"{name.removesuffix('_ms')} p{share * 100:.0f}"
            lines.append(
                f"{label:24} {one:>10.2f} {other:>11.2f} {other / one:>7.2f} {len(pruning[name]):>9}"
            )
    return "\n".join(lines)


def _size_table(sizes: dict[str, dict[str, float]]) -> str:
    parts = list(sizes["before"])
    lines = ["", f"{'MB':22}" + "".join(f"{part[-25:]:>27}" for part in parts)]
    lines += [
        f"{when:22}" + "".join(f"{measured[part]:>27.1f}" for part in parts)
        for when, measured in sizes.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
