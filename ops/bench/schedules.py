"""How late many schedules fire: half of them at the full minute, the others spread over it.

    python ops/bench/schedules.py [--schedules 20000] [--minutes 3] [--beats 2]

Starts a PostgreSQL and a Redis of its own and some beats, lets a few minutes pass, and prints how long after
its due time each task was submitted. Exits with 1 if any due time has no task, or more than one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from capataz.services.embedded import embedded  # noqa: E402
from ops.bench.price import cpu, without_configured_servers  # noqa: E402

MINUTE = 60

# Seconds after their due times, by kind, and how many due times have another number of tasks than one.
LATENESS = """
WITH fired AS (
    SELECT schedule.id, schedule.name LIKE 'full-%%' AS at_once, task.created_at,
           extract(epoch FROM task.created_at - coalesce(schedule.start_time, 'epoch'))::float8 AS age
      FROM capataz_task AS task
      JOIN django_celery_beat_periodictask AS schedule ON schedule.id = task.schedule_id
     WHERE schedule.name LIKE 'full-%%' OR schedule.name LIKE 'spread-%%'
), due AS (
    SELECT id, at_once, age - 60 * floor(age / 60) AS late, floor(age / 60) AS due
      FROM fired
     WHERE extract(epoch FROM created_at) - (age - 60 * floor(age / 60)) BETWEEN %(since)s AND %(until)s
)
SELECT CASE WHEN at_once THEN 'at the full minute' ELSE 'spread over it' END,
       count(*),
       count(DISTINCT (id, due)),
       percentile_cont(ARRAY[0.5, 0.99, 1.0]) WITHIN GROUP (ORDER BY late)
  FROM due
 GROUP BY at_once
"""


def main() -> int:
    """Run and report."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="capataz-bench-") as folder, ExitStack() as cleanup:
        place = Path(folder)
        place.chmod(0o711)
        cleanup.enter_context(without_configured_servers())
        servers = cleanup.enter_context(embedded(place / "servers"))
        os.environ.update(
            DATABASE_URL=servers.database_url,
            REDIS_URL=servers.redis_url,
            CAPATAZ_HOME=str(place / "home"),
            CAPATAZ_DEMO="1",
            DJANGO_SETTINGS_MODULE="capataz.settings",
            PYTHONPATH=os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
        )
        for command in ("migrate", "setup_platform"):
            subprocess.run([sys.executable, "manage.py", command, "-v0"], cwd=ROOT, check=True)
        _make_schedules(options.schedules)
        beats = [_beat(place / f"beat-{number}.log", cleanup) for number in range(options.beats)]
        print(f"{options.schedules} schedules are followed by {options.beats} beats", flush=True)
        since = (time.time() // MINUTE + 2) * MINUTE  # by then they have read everything
        until = since + options.minutes * MINUTE - 0.001
        _pass_until(since)
        before = cpu(beats)
        _pass_until(until)
        used = cpu(beats) - before
        _pass_until(until + MINUTE / 2)
        print()
        return _report(since, until, options, used)


def _make_schedules(count: int) -> None:
    import django

    django.setup()
    from datetime import UTC, datetime

    from django.utils import timezone
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

    full = CrontabSchedule.objects.create(minute="*", hour="*", timezone="UTC")
    every = IntervalSchedule.objects.create(every=MINUTE, period="seconds")
    about: dict[str, Any] = {"task": "demo.echo", "kwargs": '{"message": "x"}'}
    grid = timezone.now().timestamp() // MINUTE * MINUTE - 10 * MINUTE
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"full-{number}", crontab=full, **about)
        if number % 2
        else PeriodicTask(
            name=f"spread-{number}",
            interval=every,
            start_time=datetime.fromtimestamp(grid + number * MINUTE / count, UTC),
            **about,
        )
        for number in range(count)
    )
    PeriodicTasks.update_changed()


def _beat(log: Path, cleanup: ExitStack) -> int:
    command = [sys.executable, "-m", "celery", "-A", "capataz", "beat", "--pidfile=", "-l", "WARNING"]
    output = cleanup.enter_context(log.open("wb"))
    process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    cleanup.callback(process.wait)
    cleanup.callback(process.terminate)
    return process.pid


def _pass_until(moment: float) -> None:
    while (left := moment - time.time()) > 0:
        print(f"\r{left:4.0f} s", end="", flush=True)
        time.sleep(min(5, left))


def _report(since: float, until: float, options: argparse.Namespace, used: float) -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(LATENESS, {"since": since, "until": until})
        rows = cursor.fetchall()
    expected = options.schedules // 2 * options.minutes
    print(f"{'due':20} {'due times':>10} {'tasks':>8} {'late by p50':>12} {'p99':>7} {'longest':>8} s")
    for kind, tasks, due_times, (half, most, longest) in sorted(rows):
        print(f"{kind:20} {due_times:>10} {tasks:>8} {half:>12.2f} {most:>7.2f} {longest:>8.2f}")
    submitted = sum(row[1] for row in rows)
    print(f"CPU of all beats: {1e6 * used / max(1, submitted):.0f} us per task")
    exact = all((tasks, due_times) == (expected, expected) for _, tasks, due_times, _ in rows)
    if len(rows) != 2 or not exact:
        print(f"expected {expected} of each kind", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--minutes", type=int, default=3)
    parser.add_argument("--beats", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
