"""The same workload on plain Celery with django-celery-results: the app, its tasks, and how to submit them.

CHAOS_TUNED=1 is Celery as its documentation advises for work that must not be lost; without it, its defaults
with ``acks_late``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery

from ops.chaos import witness
from ops.chaos.misbehaviours import HARD, SOFT
from ops.chaos.misbehaviours import misbehave as do_misbehave

TUNED = os.environ.get("CHAOS_TUNED") == "1"

app = Celery("chaos", broker=os.environ.get("REDIS_URL"))
app.conf.update(
    result_backend="django-db",
    task_acks_late=True,
    task_track_started=True,
    result_extended=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
if TUNED:
    app.conf.update(
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            "visibility_timeout": 60,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": True,
        },
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )


@dataclass(frozen=True)
class Running:
    """What the witness wants to know."""

    id: str
    starts: int


def _running(task: Any) -> Running:
    return Running(task.request.id, task.request.retries + 1)


@app.task(name="chaos.work", bind=True)
def work(
    task: Any, seconds: float = 0, fails: int = 0, follow: str | None = None, attempts: int = 101
) -> dict[str, int]:
    """As ``ops.chaos.handlers.work``."""
    me = _running(task)
    witness.write("start", me)
    time.sleep(seconds)
    if me.starts <= fails:
        witness.write("failed", me)
        error = RuntimeError(f"attempt {me.starts} of {fails} that are asked to fail")
        raise task.retry(exc=error, countdown=0.5, max_retries=attempts - 1)
    if follow:
        work.apply_async(task_id=follow)
    witness.write("end", me)
    return {"starts": me.starts}


@app.task(
    name="chaos.misbehave",
    bind=True,
    soft_time_limit=SOFT,
    time_limit=HARD,
    autoretry_for=(Exception,),
    max_retries=100,
    default_retry_delay=0.5,
)
def misbehave(task: Any, how: str) -> Any:
    """Misbehave at the first start; what kills its process has a second one only if it is delivered again."""
    me = _running(task)
    witness.write("start", me)
    first = me.starts == 1 and not task.request.delivery_info.get("redelivered")
    result = None
    if first:
        witness.write("failed", me)  # some of it ends this process, and then nobody could write
        result = do_misbehave(how)
    witness.write("end", me)
    return result


class Peer:
    """``apply_async`` with the task's id, as a client would who wants to be able to ask again."""

    def submit(self, tasks: list[dict[str, Any]]) -> list[str]:
        """One message each: there is no transaction."""
        return [self._submit(task) for task in tasks]

    def cancel(self, key: str) -> None:
        """Revoke."""
        app.control.revoke(key, terminate=True)

    def _submit(self, task: dict[str, Any]) -> str:
        arguments = dict(task["data"])
        if "maxAttempts" in task:
            arguments["attempts"] = task["maxAttempts"]
        due = datetime.fromisoformat(task["runAt"]) if "runAt" in task else None
        app.send_task(task["type"], kwargs=arguments, task_id=task["id"], eta=due, retry=False)
        return str(task["id"])
