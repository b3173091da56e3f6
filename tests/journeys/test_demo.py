"""The demo, as somebody runs it right after the clone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from capataz.management.demo import outputs
from capataz.management.demo.letters import Letter, Mailbag
from capataz.management.demo.outputs import Lines, Picture
from capataz.management.demo.repertoire import Act
from capataz.management.demo.verdict import faults_of_tasks
from capataz.management.demo.workload import Job, make_workload
from capataz.services.launcher import wrapped

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 420  # seconds
COLUMNS = ["submitted", "completed", "failed", "cancelled", "retried", "recovered", "wait", "run", "outputs"]
TYPES = ["demo.crash", "demo.fail", "demo.sleep", "email_notification", "file_processing", "image_processing"]


FINISHED = {"status": "completed", "error": None, "waitMs": 10}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The demo's directory for temporary files, which PostgreSQL's unprivileged user can reach."""
    path = Path(tempfile.mkdtemp(prefix="capataz-test-demo-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def start_demo(temporary: Path, *options: str) -> subprocess.Popen[str]:
    unnamed = ("DATABASE_URL", "REDIS_URL", "CAPATAZ_HOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in unnamed}
    return subprocess.Popen(
        wrapped([sys.executable, "-u", "manage.py", "demo", *options], signal.SIGTERM, None),
        cwd=ROOT,
        env={**environment, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_of(temporary: Path) -> list[str]:
    """The processes whose command line or environment names this directory."""
    return [" ".join(process.cmdline()) for process in psutil.process_iter() if mentions(process, temporary)]


def mentions(process: psutil.Process, place: Path) -> bool:
    try:
        words = [*process.cmdline(), *process.environ().values()]
    except psutil.Error:  # gone, or not ours to look at
        return False
    return process.pid != os.getpid() and any(str(place) in word for word in words)


def test_the_demo_kills_a_worker_and_every_task_ends_as_it_has_to(temporary: Path) -> None:
    demo = start_demo(temporary, "--tasks", "40")
    output, _ = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 0, output
    assert output.rstrip().endswith("demo passed")
    assert re.search(r"killed worker-\d \(pid \d+\) with SIGKILL\. It held \d+ tasks", output), output
    assert re.search(r"the supervisor started worker-\d again: pid \d+ -> \d+", output), output
    assert re.search(r"throughput [\d.]+ tasks/s  average time \d+ ms", output), output
    table = output.partition("What became of the tasks")[2]
    assert all(word in table for word in [*COLUMNS, *TYPES]), table
    assert re.search(r"^ *all +40 +35 +4 +1 ", table, re.MULTILINE), table
    assert "\033" not in output
    assert left_of(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(temporary: Path, number: signal.Signals) -> None:
    demo = start_demo(temporary, "--tasks", "40")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "submitting" in line:
            break
    assert left_of(temporary) != []

    demo.send_signal(number)
    output, _ = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 128 + number, output
    assert "demo passed" not in output
    assert left_of(temporary) == []
    assert list(temporary.iterdir()) == []


def test_the_demo_keeps_its_directory_if_asked_to(temporary: Path) -> None:
    demo = start_demo(temporary, "--tasks", "20", "--seed", "3", "--keep")
    output, _ = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 0, output
    kept = re.search(r"the data directory is kept: (\S+)", output)
    assert kept, output
    assert {"uploads", "processed", "mail"} <= {path.name for path in Path(kept[1]).iterdir()}
    assert left_of(temporary) == []


# --- A check that cannot fail proves nothing ------------------------------------------------------------


def test_the_same_seed_gives_the_same_tasks_and_a_tenth_of_them_fails() -> None:
    for count in (20, 40, 300):
        workload = make_workload(count, seed=5)
        assert workload == make_workload(count, seed=5) != make_workload(count, seed=6)
        assert len({job.id for job in workload.jobs}) == count
        assert workload.expected_failures == count // 10


@pytest.mark.parametrize(
    ("task", "successes"),
    [
        (None, 1),
        ({**FINISHED, "status": "failed"}, 0),
        ({**FINISHED, "status": "cancelled"}, 0),
        (FINISHED, 0),
        (FINISHED, 2),
        ({**FINISHED, "waitMs": 4}, 1),
    ],
    ids=["gone", "failed", "cancelled", "never succeeded", "succeeded twice", "too early"],
)
def test_a_task_that_ends_otherwise_is_found(task: dict[str, object] | None, successes: int) -> None:
    job = Job("one", Act(type="demo.echo", data={}, options={"delay": 5}), priority=5)
    assert faults_of_tasks([job], {"one": FINISHED}, {"one": 1}) == []
    assert len(faults_of_tasks([job], {"one": task} if task else {}, {"one": successes})) == 1


def test_outputs_that_are_not_as_asked_are_found(tmp_path: Path) -> None:
    (tmp_path / "processed").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "processed/right.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "processed/wrong.png")
    (tmp_path / "processed/broken.png").write_bytes((tmp_path / "processed/right.png").read_bytes()[:50])
    (tmp_path / "processed/short.jsonl").write_text("{}\n")
    asked = [
        Picture(f"/processed/{name}.png", "/uploads/a.png", "cover", 40, 30)
        for name in ("right", "wrong", "broken", "missing")
    ]

    found = outputs.faults([*asked, Lines("/processed/short.jsonl", 2)], tmp_path)

    assert [Path(path).stem for path in found] == ["wrong", "broken", "missing", "short"]
    assert outputs.strangers(asked, tmp_path) == ["/processed/short.jsonl"]


def test_an_e_mail_that_did_not_arrive_is_found(tmp_path: Path) -> None:
    assert Mailbag.of([]).faults([Letter("Hello", "ana@example.com")], tmp_path) == {
        "Hello": "has not arrived"
    }
