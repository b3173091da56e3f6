"""Chaos: a platform at work, faults at random, and a checker that believes none of its records alone."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ops.chaos import report, witness
from ops.chaos.checker import Findings, check
from ops.chaos.engines import ENGINES, Engine
from ops.chaos.faults import FAULTS, KINDS, PROMISES, Injection, Scene, inject
from ops.chaos.host import Host
from ops.chaos.target import ChaosError, Target, own_platform, running_platform, wait_until
from ops.chaos.workload import Asked, Submitter, submitters

# How often in each round: what takes no time, and what is most often asked about.
OFTEN = {"kill-child": 4, "kill-worker": 3}
OVERLAP = 0.15  # of the faults begin before the one before is healed
PAUSE = (1.0, 4.0)  # seconds between two faults
WARM_UP = 5.0  # seconds
DRAIN_WITHIN = 240.0  # seconds after the last fault until every task has ended
CONCURRENCY = "2,6"


def main() -> int:
    """Run, report, and return 0 if every promise was kept."""
    options = _options()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    engine = ENGINES[options.engine]()
    try:
        with ExitStack() as cleanup:
            if options.home:
                target = running_platform(options.home.absolute())
            else:
                print(f"starting {engine.name} ...", flush=True)
                target = cleanup.enter_context(
                    own_platform(
                        lambda place: engine.command(place, options.workers, CONCURRENCY),
                        engine.environment(),
                        keep=options.keep,
                        log=folder / "platform.log",
                    )
                )
            findings = _run(engine, target, options, folder, cleanup)
    except (ChaosError, KeyboardInterrupt) as error:
        print(f"the run was cut short: {error or 'interrupted'}", file=sys.stderr)
        return 2
    print((folder / "report.md").read_text())
    print(f"The report is in {folder}.")
    if slow := findings.too_slow():
        print(
            "Slower than promised (a busy machine?): " + ", ".join(f"{k} {v:.1f} s" for k, v in slow.items())
        )
    return 0 if findings.is_sound else 1


def _run(
    engine: Engine, target: Target, options: argparse.Namespace, folder: Path, cleanup: ExitStack
) -> Findings:
    engine.prepare(target)
    host = _host(engine, target, folder, cleanup) if engine.has_host else None
    crowd = submitters(engine.doors(), seed=options.seed, rate=options.rate, folder=folder)
    for submitter in crowd:
        submitter.start()
    time.sleep(WARM_UP)
    began = time.monotonic()
    scene = Scene(target, host, random.Random(options.seed))
    injections = _inject(scene, options.faults, began + 60 * options.minutes)
    seconds = time.monotonic() - began
    asked = _stop(crowd)
    print("waiting until every task has ended", flush=True)
    prefix = crowd[0].name.rsplit("-", 1)[0]
    wait_until(lambda: engine.has_ended(target, prefix, asked), DRAIN_WITHIN, every=1)
    findings = check(asked, engine.rows(target, prefix), witness.read(target.home), injections)
    engine.ask_everybody(findings, asked)
    circumstances = report.Circumstances(
        engine.name, options.seed, options.minutes, seconds, len(crowd), len(scene.workers())
    )
    report.write(folder, circumstances, findings, injections)
    return findings


def _host(engine: Engine, target: Target, folder: Path, cleanup: ExitStack) -> Host:
    host = Host(target, folder / "host", engine.environment())
    cleanup.callback(host.stop)
    host.start()
    if not host.wait_until_ready():
        raise ChaosError(f"the worker on a host of its own did not start; see {folder / 'host'}")
    return host


def _inject(scene: Scene, names: list[str], until: float) -> list[Injection]:
    """Each fault, in a random order, and again until the time is up; some while another one lasts."""
    done: list[Injection] = []
    running: list[tuple[threading.Thread, list[Injection]]] = []
    waiting: list[str] = []
    while time.monotonic() < until:
        if not waiting:
            waiting = [name for name in names for _ in range(OFTEN.get(name, 1))]
            scene.random.shuffle(waiting)
        name = waiting.pop()
        print(f"{until - time.monotonic():5.0f} s to go: {name}", flush=True)
        found: list[Injection] = []
        thread = threading.Thread(target=lambda name=name, found=found: found.append(inject(name, scene)))
        thread.start()
        overlapping = scene.random.random() < OVERLAP
        running.append((thread, found))
        if not overlapping:
            for each, _ in running:
                each.join()
            group = [injection for _, injections in running for injection in injections]
            for injection in group:
                injection.overlapped = len(group) > 1
            done += group
            running = []
            # What the fault cut short is to run again before the next one comes, or nobody could say what
            # each of them costs.
            _sleep_until(max(each.began + PROMISES.get(KINDS.get(each.fault, ""), 0) for each in group))
        time.sleep(scene.random.uniform(*PAUSE))
    for each, injections in running:
        each.join()
        done += injections
    for name in {*names} - {injection.fault for injection in done}:
        done.append(Injection(name, injected=False, note="the time was up before its turn came"))
    return done


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _stop(crowd: list[Submitter]) -> list[Asked]:
    print("the faults are over: submitters stop", flush=True)
    for submitter in crowd:
        submitter.stop()
    for submitter in crowd:
        submitter.join()
    return [asked for submitter in crowd for asked in submitter.asked]


def _faults(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FAULTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"there is no fault {', '.join(unknown)}; choose from {', '.join(FAULTS)}"
        )
    return names


def _options() -> Any:
    parser = argparse.ArgumentParser(
        prog="make chaos",
        description=__doc__,
        epilog=f"faults: {', '.join(FAULTS)}",
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="of the faults and the workload"
    )
    parser.add_argument("--minutes", type=float, default=20, help="of faults (%(default)s)")
    parser.add_argument(
        "--faults", type=_faults, default=list(FAULTS), help="names, parted by commas (all of them)"
    )
    parser.add_argument("--engine", choices=ENGINES, default="capataz", help="what to test (%(default)s)")
    parser.add_argument("--rate", type=float, default=12, help="tasks a second (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="beside the one on a host of its own")
    parser.add_argument(
        "--home", type=Path, help="a running platform, started with CAPATAZ_HANDLERS=tasks,ops.chaos.handlers"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"capataz-chaos-{os.getpid()}-report",
        help="a folder for the report and the logs",
    )
    parser.add_argument("--keep", action="store_true", help="keep the platform's directory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
