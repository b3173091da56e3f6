"""The processes that ``up`` runs: what they are told of their servers."""

import subprocess
from pathlib import Path

import pytest

from capataz.services.platform_processes import Lineup


def test_names_of_servers_without_a_host_do_not_contradict_the_servers_of_our_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"DB_NAME": "foo", "DB_PORT": "1", "DB_USER": "bar", "REDIS_PORT": "2"}.items():
        monkeypatch.setenv(name, value)
    lineup = Lineup(tmp_path, "postgresql://capataz@localhost:5433/capataz", "redis://localhost:6380/0")
    check = lineup.manage("check", "check")
    done = subprocess.run(
        check.argv, cwd=check.cwd, env=check.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
