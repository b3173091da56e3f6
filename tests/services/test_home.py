"""The home says where the data lies and what runs there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capataz import home
from capataz.home import Process, Run
from capataz.services.waiting import eventually


def a_run(pid: int, started: int) -> Run:
    return Run(
        pid=pid,
        started=started,
        web="http://127.0.0.1:3000",
        database_url="postgresql://capataz:secret@127.0.0.1:1/capataz",
        redis_url="redis://:secret@127.0.0.1:2/0",
        flower=None,
        processes=[Process("web", 7)],
    )


def our_run() -> Run:
    started = home.start_time(os.getpid())
    assert started is not None
    return a_run(os.getpid(), started)


def test_the_environment_names_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPATAZ_HOME", str(tmp_path / "here"))
    assert home.home() == tmp_path / "here"


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPATAZ_HOME", "here")
    assert home.home() == tmp_path / "here"


def test_without_a_checkout_the_home_is_in_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(home, "REPOSITORY", tmp_path / "site-packages")
    assert home.home() == tmp_path / ".capataz"


def test_a_checkout_holds_its_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "manage.py").touch()
    monkeypatch.setattr(home, "REPOSITORY", tmp_path)
    assert home.home() == tmp_path / ".capataz"


def test_nothing_runs_in_an_empty_home(tmp_path: Path) -> None:
    assert home.running(tmp_path) is None
    assert home.running(tmp_path / "missing") is None


def test_what_was_announced_is_running(tmp_path: Path) -> None:
    home.announce(our_run(), tmp_path)
    assert home.running(tmp_path) == our_run()


def test_what_was_withdrawn_is_not_running(tmp_path: Path) -> None:
    home.announce(our_run(), tmp_path)
    home.withdraw(tmp_path)
    home.withdraw(tmp_path)
    assert home.running(tmp_path) is None


def test_only_the_owner_may_read_the_passwords(tmp_path: Path) -> None:
    home.announce(our_run(), tmp_path)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_platform_whose_supervisor_died_is_not_running(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor:
        started = home.start_time(supervisor.pid)
        assert started is not None
        home.announce(a_run(supervisor.pid, started), tmp_path)
        assert home.running(tmp_path)
        supervisor.kill()
        # Not yet collected by us, it is a zombie, and that is dead too.
        assert eventually(lambda: home.running(tmp_path) is None, 60)
    assert home.running(tmp_path) is None


def test_a_reused_pid_is_not_taken_for_the_supervisor(tmp_path: Path) -> None:
    ours = our_run()
    home.announce(a_run(ours.pid, ours.started - 1), tmp_path)
    assert home.running(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"pid": 1, "processes": [], "unknown": 1}'])
def test_a_file_that_is_not_a_run_is_no_running_platform(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert home.running(tmp_path) is None


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    home.announce(our_run(), tmp_path)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["processes"] == [{"name": "web", "pid": 7}]
    assert found["flower"] is None


def test_the_environment_comes_before_the_running_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAPATAZ_HOME", str(tmp_path))
    assert home.database_url() is None
    assert home.redis_url() is None

    home.announce(our_run())
    assert home.database_url() == our_run().database_url
    assert home.redis_url() == our_run().redis_url

    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/x")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    assert home.database_url() == "postgresql://elsewhere/x"
    assert home.redis_url() == "redis://elsewhere/0"
