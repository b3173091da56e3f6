"""The pytest plugin: ``capataz_tasks`` and the mark ``capataz``. It needs pytest-django for its database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

MODES = ("manual", "inline")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        "capataz(mode, retries=True): submitted tasks are only recorded (manual), or run at once (inline)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have pytest-django make a database also for tests that are only marked."""
    for item in items:
        if item.get_closest_marker("capataz") and not item.get_closest_marker("django_db"):
            item.add_marker(pytest.mark.django_db)


@pytest.fixture
def capataz_tasks(request: pytest.FixtureRequest, db: None) -> Iterator[Any]:
    """``capataz.testing``, on the test's database, in the mode that the mark ``capataz`` names."""
    from capataz import testing

    mark = request.node.get_closest_marker("capataz")
    mode, options = (mark.args or MODES)[0] if mark else "manual", mark.kwargs if mark else {}
    if mode not in MODES:
        raise pytest.UsageError(f"the mark capataz knows the modes {' and '.join(MODES)}, not {mode!r}")
    with testing.inline(**options) if mode == "inline" else contextlib.nullcontext():
        yield testing


@pytest.fixture(autouse=True)
def _mode_of_marked_tests(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("capataz"):
        request.getfixturevalue("capataz_tasks")
