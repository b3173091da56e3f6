"""What a task costs: CPU time per no-op task over all processes, beside Celery, in one run.

    python ops/bench/price.py [--tasks 5000] [--rounds 3] [--events]

Starts a PostgreSQL and a Redis of its own, runs each contestant with two pool processes in turn, A B C
A B C ..., and prints medians with minimum and maximum. Only ratios inside one run mean anything: the
machine may be shared. Counted are the worker's parent and children, the dispatcher, Redis and
PostgreSQL, from the first submission to the last finish; the submitting process is shown apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from capataz.services.embedded import Servers, embedded  # noqa: E402

PATIENCE = 600  # seconds
WARM_UP = 300  # tasks, so that bundle sizes are known and every process has done everything once


@dataclass(frozen=True)
class Contestant:
    """One system: its processes, and what submits to it. ``module`` is in ``ops.bench.peers``."""

    name: str
    settings: str
    processes: tuple[tuple[str, ...], ...]
    redis_db: int
    backend: str = ""
    task_results: bool = True


@dataclass(frozen=True)
class Measurement:
    """One round of one contestant, per task."""

    cpu_us: float
    submit_us: float
    per_second: float


CELERY = (sys.executable, "-m", "celery")
WORKER = ("worker", "--concurrency=2", "--without-gossip", "--without-mingle", "-l", "WARNING")
OURS = (
    (sys.executable, str(ROOT / "manage.py"), "dispatcher"),
    (*CELERY, "-A", "capataz", *WORKER, "-n", "bench@%h"),
)
CONTESTANTS = (
    Contestant("Capataz (state, result, attempts)", "capataz.settings", OURS, redis_db=1),
    Contestant("Capataz, no TaskResult", "capataz.settings", OURS, redis_db=4, task_results=False),
    Contestant(
        "Celery + django-celery-results",
        "ops.bench.peer_settings",
        ((*CELERY, "-A", "ops.bench.peer", *WORKER, "-n", "dcr@%h"),),
        redis_db=2,
        backend="django-db",
    ),
    Contestant(
        "Celery, ignore_result",
        "ops.bench.peer_settings",
        ((*CELERY, "-A", "ops.bench.peer", *WORKER, "-n", "plain@%h"),),
        redis_db=3,
        backend="none",
    ),
)


def main() -> None:
    """Run all contestants and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", action="store_true", help="with Celery's task events on for all")
    parser.add_argument("--json", type=Path, help="write the measurements there")
    options = parser.parse_args()
    measured: dict[str, list[Measurement]] = {each.name: [] for each in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="capataz-bench-") as folder:
        Path(folder).chmod(0o711)
        with without_configured_servers(), embedded(Path(folder) / "servers") as servers:
            for number in range(options.rounds):
                for contestant in CONTESTANTS:
                    print(f"round {number + 1}/{options.rounds}: {contestant.name} ...", flush=True)
                    measured[contestant.name].append(
                        _measure(contestant, servers, Path(folder), options.tasks, options.events)
                    )
    print(_table(measured))
    if options.json:
        rows = {name: [vars(each) for each in values] for name, values in measured.items()}
        options.json.write_text(json.dumps(rows, indent=2))


def _measure(contestant: Contestant, servers: Servers, folder: Path, tasks: int, events: bool) -> Measurement:
    environment = _environment(contestant, servers, folder)
    _client(environment, "prepare")
    with running(contestant, environment, folder, events) as pids:
        _client(environment, "run", WARM_UP)
        families = [*pids, *server_pids(servers)]
        before = cpu(families)
        report = _client(environment, "run", tasks)
        used = cpu(families) - before
    return Measurement(
        cpu_us=1e6 * used / tasks,
        submit_us=1e6 * report["submit_cpu"] / tasks,
        per_second=tasks / report["seconds"],
    )


def _environment(contestant: Contestant, servers: Servers, folder: Path) -> dict[str, str]:
    database = fresh_database(servers.database_url)
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": contestant.settings,
        "DATABASE_URL": database,
        "REDIS_URL": servers.redis_url.rsplit("/", 1)[0] + f"/{contestant.redis_db}",
        "BENCH_BACKEND": contestant.backend,
        "BENCH_DONE": str(folder / f"done-{contestant.redis_db}"),
        "CAPATAZ_HOME": str(folder / "home"),
        "CAPATAZ_DEMO": "1",
        "CAPATAZ_TASK_RESULTS": str(contestant.task_results),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
    }


def fresh_database(url: str) -> str:
    """The URL of a new database on this server."""
    name = f"bench_{time.time_ns()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return psycopg.conninfo.make_conninfo(url, dbname=name)


@contextlib.contextmanager
def running(
    contestant: Contestant, environment: dict[str, str], folder: Path, events: bool
) -> Iterator[list[int]]:
    """Its processes, for as long as a block of code runs."""
    started = []
    try:
        for number, command in enumerate(contestant.processes):
            log = (folder / f"{contestant.redis_db}-{number}.log").open("ab")
            extra = ("-E",) if events and "worker" in command else ()
            started.append(
                subprocess.Popen([*command, *extra], cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _client(environment: dict[str, str], *arguments: object) -> dict[str, float]:
    """What ops/bench/client.py reports about one call."""
    command = [sys.executable, "-m", "ops.bench.client", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, timeout=PATIENCE
    )
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def server_pids(servers: Servers) -> list[int]:
    """PostgreSQL's and Redis's main processes."""
    return [server.child.pid for server in servers.own() if server.child is not None]


def cpu(roots: list[int]) -> float:
    """Seconds of CPU that these processes, their living descendants and their reaped ones have used."""
    total = 0.0
    for root in roots:
        parent = psutil.Process(root)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


@contextlib.contextmanager
def without_configured_servers() -> Iterator[None]:
    """The benchmark fills and empties its servers: never those that the shell happens to name."""
    names = ("DATABASE_URL", "REDIS_URL")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _table(measured: dict[str, list[Measurement]]) -> str:
    ours = statistics.median(each.cpu_us for each in measured[CONTESTANTS[0].name])
    lines = [
        "",
        f"{'CPU per no-op task, all processes':36} {'us, median (min-max)':>24} {'x Capataz':>10}"
        f" {'submit us':>10} {'tasks/s':>9}",
    ]
    for name, rounds in measured.items():
        cpu = sorted(each.cpu_us for each in rounds)
        median = statistics.median(cpu)
        lines.append(
            f"{name:36} {f'{median:.0f} ({cpu[0]:.0f}-{cpu[-1]:.0f})':>24} {median / ours:>10.1f}"
            f" {statistics.median(each.submit_us for each in rounds):>10.0f}"
            f" {statistics.median(each.per_second for each in rounds):>9.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
