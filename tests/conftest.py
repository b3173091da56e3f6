"""What every test may ask for: a clean database and Redis, real processes, and patience."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import redis
from django.conf import settings
from django.core.management import call_command
from django.db import connections

from capataz import pytest_plugin
from tests import embedded_servers
from tests.processes import PATIENCE, Processes
from tests.records import Records

# A slow machine is no fault of what is tested.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# The folders whose tests take longest. They begin first, so that at the end no process of the run waits for
# one that has only just begun such a test.
FIRST = ["journeys", "failures", "services", "worker"]


def pytest_configure(config: pytest.Config) -> None:
    # An installation whose metadata is older than its sources does not name it.
    if not config.pluginmanager.has_plugin("capataz"):
        config.pluginmanager.register(pytest_plugin, "capataz")


@pytest.hookimpl(trylast=True)  # pytest-django sorts too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(FIRST)))


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Call something until it returns something true, and return that."""

    def wait(condition: Callable[[], Any], *, within: float = PATIENCE, every: float = 0.02) -> Any:
        deadline = time.monotonic() + within
        while True:
            began = time.monotonic()
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                name = getattr(condition, "__name__", condition)
                raise AssertionError(f"{name} did not come true within {within:g} s; last: {value!r}")
            # Looking is work too, and must not hold up what it waits for.
            time.sleep(max(every, min(1.0, 4 * (time.monotonic() - began))))

    return wait


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """Note what something took and what it is meant to take, in seconds; all of it is printed at the end."""

    def note(what: str, seconds: float, within: float) -> None:
        request.node.user_properties.append(("measured", (what, seconds, within)))

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for each in terminalreporter.stats.values() for report in each]
    notes = {
        tuple(value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "measured"
    }
    if notes:
        terminalreporter.section("measured, and aimed at on a quiet machine")
    for what, seconds, within in sorted(notes):
        terminalreporter.write_line(f"{seconds:7.2f} s {within:5.0f} s  {what}")


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    """The Redis of this run, empty."""
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def platform(
    transactional_db: None, broker: redis.Redis, request: pytest.FixtureRequest
) -> Iterator[Processes]:
    """Real processes of the platform on this test's database; all are ended afterwards."""
    call_command("setup_platform", verbosity=0)
    processes = Processes()
    yield processes
    processes.stop_all()
    failed = getattr(request.node, "failed", False)
    if failed:
        processes.print_logs()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def servers() -> Any:
    """The servers of this run; whatever a test stops is running again afterwards."""
    held = embedded_servers.servers()
    yield held
    for server in held.own():
        if server.child is None:
            server.start()
            server.wait_until_ready()
    for connection in connections.all():
        connection.close()


@pytest.fixture
def restart_postgres(servers: Any) -> Callable[[], None]:
    def restart() -> None:
        servers.postgres.kill()
        servers.postgres.start()
        servers.postgres.wait_until_ready()
        for connection in connections.all():
            connection.close()

    return restart


@pytest.fixture
def restart_redis(servers: Any) -> Callable[[], None]:
    def restart() -> None:
        servers.redis.kill()
        servers.redis.start()
        servers.redis.wait_until_ready()

    return restart


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        item.failed = True  # type: ignore[attr-defined]
