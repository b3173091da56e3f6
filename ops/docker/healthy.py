"""Whether the process of this container is well: exits 0 if it is, else 1 with a word why.

``healthy.py web|dispatcher|worker|beat|flower``. Asks PostgreSQL or the process itself, never Redis: a Redis
that is away is waited out, and restarting our containers would not bring it back.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request

PATIENCE = 5  # seconds


def answers(url: str) -> bool:
    """Whether this address answers 200, without any proxy in between."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def has_session(application: str) -> bool:
    """Whether a process on this address, other than this one, has a session of this name in the database.

    Behind a pooler, where sessions have neither, only whether the database answers.
    """
    from django.db import connection

    from capataz.database import own_backend

    with connection.cursor() as cursor:
        if own_backend(connection.connection) is None:
            return True
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND client_addr = inet_client_addr() AND pid <> pg_backend_pid() AND application_name LIKE %s)",
            [application],
        )
        [found] = cursor.fetchone()
    return bool(found)


def is_registered_worker() -> bool:
    """Whether the worker of this host has registered itself and was not given up for dead."""
    from capataz.models import Worker

    return Worker.objects.alive().filter(host=socket.gethostname()).exists()


def main() -> None:
    """Ask what fits the process."""
    name = sys.argv[1]
    if name in ("dispatcher", "worker", "beat"):
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "capataz.settings")
        import django

        django.setup()
    well = {
        "web": lambda: answers(f"http://127.0.0.1:{os.environ.get('WEB_PORT', '3000')}/health/live"),
        "flower": lambda: answers(f"http://127.0.0.1:{os.environ.get('FLOWER_PORT', '5555')}/healthcheck"),
        "dispatcher": lambda: has_session("capataz dispatcher"),
        "beat": lambda: has_session("%"),
        "worker": is_registered_worker,
    }[name]
    try:
        if well():
            return
    except Exception as error:  # no database, or one without our tables
        sys.exit(f"{name} is not well: {error}")
    sys.exit(f"{name} is not well")


if __name__ == "__main__":
    main()
