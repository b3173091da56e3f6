"""``manage.py newtask``: a handler that works and a test that passes, and nothing overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from psycopg.conninfo import make_conninfo

from tests.processes import ROOT


def manage(folder: Path, *words: str, handlers: str = "tasks,shop") -> subprocess.CompletedProcess[str]:
    """``manage.py`` where the packages in this folder are the user's."""
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT), str(folder)])
    return subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "CAPATAZ_HANDLERS": handlers},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A package of somebody's own."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    return tmp_path / "shop"


def test_what_is_written_is_found_and_its_test_passes(shop: Path, tmp_path: Path) -> None:
    done = manage(tmp_path, "newtask", "shop.send_parcel", "--queue", "parcels")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(shop / "send_parcel.py"), str(shop / "tests" / "test_send_parcel.py")]
    assert manage(tmp_path, "check").returncode == 0
    again = manage(tmp_path, "newtask", "shop.send_parcel")
    assert (again.returncode, "there is a handler shop.send_parcel already" in again.stderr) == (1, True)

    env = {**os.environ, "CAPATAZ_HANDLERS": "tasks,shop", "COLUMNS": "200"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "platform"), str(ROOT), str(tmp_path)])
    # The servers of this run, and a database of its own.
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--ds=capataz.settings", str(shop)]
    command += ["-p", "capataz.pytest_plugin", "-p", "no:capataz", "-p", "no:cacheprovider", "-p", "no:xdist"]
    env.pop("PYTEST_PLUGINS", None)
    env["DATABASE_URL"] = make_conninfo(env["DATABASE_URL"], dbname="newtask")
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "3 passed" in ran.stdout, ran.stdout + ran.stderr


def test_nothing_is_overwritten(shop: Path) -> None:
    (shop / "tests").mkdir()
    (shop / "tests" / "test_pack.py").write_text("mine")
    with pytest.raises(CommandError, match="exists already: nothing was written"):
        call_command("newtask", "pack", package=shop)
    assert not (shop / "pack.py").exists()
    assert (shop / "tests" / "test_pack.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["Pack", "pack-it", "a.b.c", "", "1st", "x" * 65, "../pack"])
def test_names_that_are_none_are_refused(shop: Path, name: str) -> None:
    with pytest.raises(CommandError, match="one or two words"):
        call_command("newtask", name, package=str(shop))


def test_a_package_that_is_missing_is_made_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("newtask", "pack", package=tmp_path / "depot")
    assert (tmp_path / "depot" / "__init__.py").exists()
    assert "set CAPATAZ_HANDLERS=tasks,tests.workload,depot" in capsys.readouterr().err
    with pytest.raises(CommandError, match="names no package of yours"):
        call_command("newtask", "pack")
