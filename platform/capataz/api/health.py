"""Health: whether the platform can do its work, for load balancers and for people. Open to everyone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import redis
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET
from redis.exceptions import NoPermissionError

from capataz.api import problems
from capataz.api.wire import answer
from capataz.database import Session
from capataz.lifecycle.dispatch import CLIENT_NAME

# Seconds a check may take: a load balancer that waits longer gives up on us.
PATIENCE = 1.0

Facts = dict[str, Any]


class Check:
    """One question to a server, asked in a thread of its own so that a frozen one cannot hold us up.

    While an answer is outstanding, everyone who asks waits for the same one.
    """

    def __init__(self, name: str, ask: Callable[[], Facts]) -> None:
        self._name = name
        self._ask = ask
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._outstanding: Future[Facts] | None = None

    def start(self) -> Future[Facts]:
        """Ask, unless somebody has asked already and waits."""
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"health-{self._name}")
            if self._outstanding is None or self._outstanding.done():
                self._outstanding = self._thread.submit(self._ask)
            return self._outstanding


def facts_of(*asked: Future[Facts], patience: float = PATIENCE) -> list[Facts]:
    """What the checks found within ``patience`` seconds for all: ``ok``, and more if it is true.

    Never raises, and says nothing of the cause.
    """
    done, _ = wait(asked, timeout=patience)
    return [
        {"ok": True, **each.result()} if each in done and not each.exception() else {"ok": False}
        for each in asked
    ]


_session = Session("health")


def _ask_database() -> Facts:
    try:
        connection = _session.connection()
        [[workers, dispatchers]] = connection.execute(
            """
            SELECT (SELECT count(*) FROM capataz_worker WHERE state IN ('running', 'draining')),
                   (SELECT count(*) FROM pg_stat_activity
                     WHERE application_name = 'capataz dispatcher' AND datname = current_database())
            """
        ).fetchall()
    except Exception:
        _session.close()
        raise
    # Behind a pooler a session bears the name of whoever used it last.
    return {"workers": workers, "dispatchers": None if _session.backend is None else dispatchers}


def _ask_redis() -> Facts:
    client = redis.Redis.from_url(
        settings.REDIS_URL or "",
        socket_timeout=PATIENCE,
        socket_connect_timeout=PATIENCE,
        client_name="capataz-health",
    )
    with client:
        client.ping()
        return {} if _session.backend else {"dispatchers": _dispatchers_at(client)}


def _dispatchers_at(client: redis.Redis) -> int | None:
    """How many dispatchers are connected to Redis; None where we may not know."""
    try:
        clients: list[dict[str, str]] = client.client_list()
    except NoPermissionError:
        return None
    return sum(each["name"] == CLIENT_NAME for each in clients)


_database = Check("database", _ask_database)
_redis = Check("redis", _ask_redis)


@problems.guard
@require_GET
def health(request: HttpRequest) -> HttpResponse:
    """How the platform is: ``normal``; ``degraded`` while tasks are accepted and wait; ``down``, with a 503,
    while none can be accepted.
    """
    database, broker = facts_of(_database.start(), _redis.start())
    workers, dispatchers = database.pop("workers", None), database.pop("dispatchers", None)
    connected = broker.pop("dispatchers", None)
    dispatchers = connected if dispatchers is None else dispatchers
    checks = {
        "database": database,
        "redis": broker,
        "workers": {"ok": bool(workers), "alive": workers},
        "dispatcher": {"ok": bool(dispatchers), "alive": dispatchers},
    }
    if not database["ok"]:
        headers = {"Retry-After": str(problems.RETRY_AFTER)}
        return answer({"status": "down", "checks": checks}, 503, headers)
    normal = all(check["ok"] for check in checks.values())
    return answer({"status": "normal" if normal else "degraded", "checks": checks})


@problems.guard
@require_GET
def live(request: HttpRequest) -> HttpResponse:
    """Whether this process answers; it asks nobody else."""
    return answer({"status": "normal"})
