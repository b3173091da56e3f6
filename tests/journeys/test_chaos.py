"""A short chaos run, as an operator starts it."""

import json
import os
import subprocess
import sys

from tests.processes import PATIENCE, ROOT


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ops.chaos", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": "", "REDIS_URL": ""},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )


def test_a_short_run_keeps_every_promise(tmp_path):
    faults = ["kill-child", "kill-worker", "flush-redis", "forged-messages", "terminate-backends"]
    done = run(
        "--seed", "5", "--minutes", "0.6", "--rate", "5", "--faults", ",".join(faults), "--out", str(tmp_path)
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sound"] is True
    assert report["findings"]["accepted"] > 50
    assert {each["fault"] for each in report["faults"]} == set(faults)
    assert "| **lost** | **0** |" in (tmp_path / "report.md").read_text()


def test_a_fault_that_does_not_exist_is_named():
    done = run("--faults", "kill-child,kill-everybody")
    assert done.returncode == 2
    assert "there is no fault kill-everybody; choose from kill-worker, kill-child" in done.stderr
