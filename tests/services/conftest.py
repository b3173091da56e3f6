"""What the tests of servers and processes share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A home that PostgreSQL's unprivileged user can reach; pytest's own directories are private to us."""
    path = Path(tempfile.mkdtemp(prefix="capataz-test-"))
    path.chmod(0o711)
    yield path
    _forget_data_elsewhere(path)
    shutil.rmtree(path)


@pytest.fixture
def private_place(tmp_path: Path) -> Iterator[Path]:
    """A home below a directory that only we may enter."""
    tmp_path.chmod(0o700)
    path = tmp_path / "home"
    path.mkdir(mode=0o711)
    yield path
    _forget_data_elsewhere(path)


@pytest.fixture(autouse=True)
def no_named_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests start their own servers, whatever the rest of the suite uses."""
    for name in ("DATABASE_URL", "REDIS_URL", "CAPATAZ_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(_import_roots()))


def _import_roots() -> list[str]:
    source = Path(__file__).resolve().parents[2] / "platform"
    return [str(source), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _forget_data_elsewhere(home: Path) -> None:
    link = home / "postgres"
    if link.is_symlink():
        shutil.rmtree(link.resolve(), ignore_errors=True)
