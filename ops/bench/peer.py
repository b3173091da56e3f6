"""The peers' Celery app: one no-op task."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

app = Celery("peer", broker=os.environ["REDIS_URL"])
BACKEND = os.environ["BENCH_BACKEND"]
app.conf.update(
    result_backend="django-db" if BACKEND == "django-db" else None,
    task_ignore_result=BACKEND != "django-db",
    task_acks_late=BACKEND == "django-db",
    task_track_started=BACKEND == "django-db",
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)

DONE = os.environ["BENCH_DONE"]  # a file that gets one byte per task: the cheapest way to count


@app.task(name="noop")
def noop(payload: dict[str, Any]) -> dict[str, Any]:
    """Return what came in, counted where no result tells."""
    if BACKEND != "django-db":
        descriptor = os.open(DONE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b".")
        os.close(descriptor)
    return payload
