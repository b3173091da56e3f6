"""A pytest plugin: real PostgreSQL and Redis for the whole run, started before Django reads its settings.

Loaded with ``-p tests.embedded_servers``. The servers are private ones, even where DATABASE_URL is set
in the developer's shell: a test run must never touch anything that somebody uses. They end with the run,
also when it is killed. In a run on several processes each has a home and servers of its own, and the one
that only hands out the tests has none.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from capataz.services.embedded import Servers, embedded

_stack = contextlib.ExitStack()
_servers: Servers | None = None

# xdist's workers read -p from pyproject.toml only after Django has read its settings; this they read before.
os.environ["PYTEST_PLUGINS"] = __name__

for _name in ("DATABASE_URL", "REDIS_URL", "DB_HOST", "REDIS_HOST"):
    os.environ.pop(_name, None)

_home = Path(_stack.enter_context(tempfile.TemporaryDirectory(prefix="capataz-tests-")))
_home.chmod(0o711)  # PostgreSQL's unprivileged user has to pass
os.environ["CAPATAZ_HOME"] = str(_home)
os.environ["APP_ENV"] = "test"
os.environ["CAPATAZ_DEMO"] = "1"
os.environ["CAPATAZ_HANDLERS"] = "tasks,tests.workload"
os.environ["CAPATAZ_TASK_QUEUES"] = "default,emails"
os.environ["CAPATAZ_DURABLE_TASKS"] = "tests.workload.made_*"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    if not _only_hands_out_tests(early_config):
        _start_servers()


@pytest.hookimpl(trylast=True)  # after the fixtures of the session
def pytest_sessionfinish() -> None:
    # Not later: a process of xdist has five seconds to end from the moment when it says that it has finished.
    _stack.close()


def pytest_unconfigure() -> None:
    _stack.close()  # of a run that came to no session


def servers() -> Servers:
    """The servers of this run, for tests that stop and start them."""
    assert _servers is not None
    return _servers


def _only_hands_out_tests(config: pytest.Config) -> bool:
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    return bool(config.known_args_namespace.numprocesses) and not is_worker


def _start_servers() -> None:
    global _servers
    _servers = _stack.enter_context(embedded(_home / "servers"))
    os.environ["DATABASE_URL"] = _servers.database_url
    os.environ["REDIS_URL"] = _servers.redis_url
