"""A pytest plugin: real PostgreSQL and Redis for the whole run, started before Django reads its settings.

Loaded with ``-p tests.embedded_servers``. The servers are private ones, even where DATABASE_URL is set
in the developer's shell: a test run must never touch anything that somebody uses. They end with the run,
also when it is killed.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from capataz.services.embedded import embedded

_stack = contextlib.ExitStack()

for _name in ("DATABASE_URL", "REDIS_URL", "DB_HOST", "REDIS_HOST"):
    os.environ.pop(_name, None)

_home = Path(_stack.enter_context(tempfile.TemporaryDirectory(prefix="capataz-tests-")))
_home.chmod(0o711)  # PostgreSQL's unprivileged user has to pass
os.environ["CAPATAZ_HOME"] = str(_home)
os.environ["APP_ENV"] = "test"
os.environ["CAPATAZ_DEMO"] = "1"
os.environ["CAPATAZ_HANDLERS"] = "tasks,tests.workload"
_servers = _stack.enter_context(embedded(_home / "servers"))
os.environ["DATABASE_URL"] = _servers.database_url
os.environ["REDIS_URL"] = _servers.redis_url


def pytest_unconfigure() -> None:
    _stack.close()


def servers():  # type: ignore[no-untyped-def]
    """The servers of this run, for tests that stop and start them."""
    return _servers
