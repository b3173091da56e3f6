"""Submits no-op tasks to one contestant and waits for them: ``client.py prepare`` or ``client.py run N``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import django

django.setup()

import redis  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

OURS = os.environ["DJANGO_SETTINGS_MODULE"] == "capataz.settings"
PAYLOAD = {"message": "x" * 200}


def prepare() -> None:
    """An empty database and an empty Redis."""
    call_command("migrate", verbosity=0)
    if OURS:
        call_command("setup_platform", verbosity=0)
    redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()


def run(tasks: int) -> None:
    """Submit so many tasks, wait until all have ended, and report seconds."""
    finished = _counted() + tasks
    started, cpu = time.monotonic(), time.process_time()
    _submit(tasks)
    submit_cpu = time.process_time() - cpu
    while _counted() < finished:
        time.sleep(0.05)
    print(json.dumps({"seconds": time.monotonic() - started, "submit_cpu": submit_cpu}))


def _submit(tasks: int) -> None:
    if OURS:
        from capataz.lifecycle.submission import Submission, submit_many

        submit_many(Submission(type="demo.echo", data=PAYLOAD) for _ in range(tasks))
        return
    from ops.bench.peer import noop

    for _ in range(tasks):
        noop.delay(PAYLOAD)


def _counted() -> int:
    if OURS:
        return _rows("capataz_task WHERE state = 'succeeded'")
    if os.environ["BENCH_BACKEND"] == "django-db":
        return _rows("django_celery_results_taskresult WHERE status = 'SUCCESS'")
    done = Path(os.environ["BENCH_DONE"])
    return done.stat().st_size if done.exists() else 0


def _rows(source: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {source}")
        return int(cursor.fetchone()[0])


if __name__ == "__main__":
    prepare() if sys.argv[1] == "prepare" else run(int(sys.argv[2]))
    if sys.argv[1] == "prepare":
        print("{}")
