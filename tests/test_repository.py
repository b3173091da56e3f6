"""The repository itself: what must be true of its files, whatever the code does."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from capataz.states import COMES_FROM, WIRE, State
from ops import settings_page
from tests.processes import PATIENCE, database_environment

ROOT = Path(__file__).resolve().parent.parent
# Written in two parts, so that this file does not contain what it looks for.
REGISTRIES = [
    "py" + "pi.org",
    "pythonhosted" + ".org",
    "registry.npm" + "js.org",
    "docker" + ".io",
    "gh" + "cr.io",
    "qu" + "ay.io",
    "gc" + "r.io",
    "public" + ".ecr.aws",
    "deb" + ".debian.org",
]
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


@cache
def tracked_files() -> list[Path]:
    """Every file that a commit would have, also those that are not committed yet."""
    if not (ROOT / ".git").exists():
        places = ["platform", "tasks", "dashboard", "tests", "fixtures", "ops", "docs", "requirements", ".ci"]
        found = [path for place in places for path in (ROOT / place).rglob("*")]
        return [
            path for path in [*found, *ROOT.glob("*")] if path.is_file() and "__pycache__" not in path.parts
        ]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:  # a sample image
        return ""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, as somebody would type it in the checkout with the packages in reach."""
    roots = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": roots, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# --- Python's own platform module ---------------------------------------------------------------------


def test_the_source_root_named_platform_is_not_a_package():
    assert not list((ROOT / "platform").glob("*.py"))


def test_pytest_sees_pythons_own_platform_module():
    import platform

    assert platform.python_version() == sys.version.split()[0]


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import platform; print(platform.system())"],
        ["manage.py", "shell", "-v", "0", "-c", "import platform; print(platform.system())"],
        ["-m", "django", "shell", "-v", "0", "-c", "import platform; print(platform.system())"],
        ["-m", "celery", "-A", "capataz", "report"],
    ],
    ids=["python", "manage.py", "django", "celery"],
)
def test_every_way_in_sees_pythons_own_platform_module(command):
    done = run(sys.executable, *command)
    assert done.returncode == 0, done.stderr
    assert "Linux" in done.stdout


def test_gunicorn_finds_the_application():
    done = run(sys.executable, "-m", "gunicorn", "--check-config", "--no-control-socket", "capataz.wsgi")
    assert done.returncode == 0, done.stderr


# --- Files --------------------------------------------------------------------------------------------


def test_no_file_is_named_for_being_of_general_use():
    nameless = [path for path in tracked_files() if path.stem.lower() in NAMELESS]
    assert nameless == []


def test_no_file_names_the_host_of_a_registry():
    naming = [
        (path.relative_to(ROOT), host)
        for path in tracked_files()
        for host in REGISTRIES
        if re.search(rf"(?<![\w.-]){re.escape(host)}|\.{re.escape(host)}", text_of(path))
    ]
    assert naming == []


def test_links_between_pages_lead_somewhere():
    broken = [
        (page.relative_to(ROOT), target)
        for page in tracked_files()
        if page.suffix == ".md" and "samples" not in page.parts
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page))
        if not (page.parent / target).exists()
    ]
    assert broken == []


# --- Requirements -------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    """Package to version. Fails on a line that is neither a pin, a hash nor a comment."""
    found = {}
    for line in (ROOT / "requirements" / name).read_text().replace("\\\n", " ").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        pin = re.match(r"([a-z0-9._-]+)==(\S+)(?: ;[^-]+)?\s+--hash=sha256:[0-9a-f]{64}", line)
        assert pin, f"{name}: {line[:80]!r} is not pinned with a hash"
        found[pin[1]] = pin[2]
    return found


@pytest.mark.parametrize("name", ["base.txt", "dev.txt"])
def test_requirements_are_pinned_with_hashes_and_name_no_place(name):
    assert len(pins(name)) > 40
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert "--index" not in text and "--find-links" not in text


def test_both_requirement_files_pin_the_same_versions():
    dev = pins("dev.txt")
    assert {name: dev.get(name) for name in pins("base.txt")} == pins("base.txt")


def test_every_dependency_of_the_project_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {"base.txt": project["project"]["dependencies"], "dev.txt": project["dependency-groups"]["dev"]}
    for name, requirements in wanted.items():
        names = {re.match(r"[A-Za-z0-9._-]+", each)[0].lower().replace("_", "-") for each in requirements}
        assert names <= pins(name).keys(), f"run `make lock`: {names - pins(name).keys()}"


# --- Commands -----------------------------------------------------------------------------------------


def test_plain_make_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    listed = re.findall(r"^  make (\S+) +\S", run("make").stdout, re.MULTILINE)
    declared = re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, re.MULTILINE)
    assert listed == declared
    assert {"setup", "demo", "up", "test", "check", "bench", "lock", "web", "worker"} <= set(listed)


def test_ci_runs_what_a_contributor_runs():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", str(script)).returncode == 0
    assert {"check", "coverage"} <= set(
        re.findall(r"^step \w+ make .*?(\w+)$", script.read_text(), re.MULTILINE)
    )


def test_pre_commit_fetches_nothing():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}


# --- Containers ---------------------------------------------------------------------------------------

# What the Compose specification allows in a service, as far as we use it or are likely to.
SERVICE_KEYS = {
    *("build", "image", "init", "restart", "environment", "volumes", "depends_on", "command", "ports"),
    *(
        "env_file",
        "stop_grace_period",
        "healthcheck",
        "shm_size",
        "user",
        "entrypoint",
        "deploy",
        "networks",
        "profiles",
    ),
}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


@pytest.fixture
def compose():
    """docker-compose.yml with its anchors resolved."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_has_every_process_of_the_platform(compose):
    expected = {"postgres", "redis", "migrate", "web", "dispatcher", "worker", "beat", "flower"}
    assert compose["services"].keys() == expected
    assert {key for key in compose if not key.startswith("x-")} == {"services", "volumes"}


def test_compose_uses_only_what_compose_knows(compose):
    for name, service in compose["services"].items():
        assert service.keys() <= SERVICE_KEYS, name
        assert service.get("healthcheck", {}).keys() <= HEALTH_KEYS, name
        for other, need in service.get("depends_on", {}).items():
            assert other in compose["services"] and need["condition"] in CONDITIONS, name
            if need["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][other], f"{name} waits for {other} to be healthy"
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], name
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), name


def test_compose_publishes_the_web_alone_and_on_the_loopback_address(compose):
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(ports) == ["web"]
    assert all(port.startswith("127.0.0.1:") for port in ports["web"])


def test_compose_processes_are_watched_and_may_end_in_peace(compose):
    for name, service in compose["services"].items():
        if name != "migrate":
            assert "healthcheck" in service and "stop_grace_period" in service, name
        if "build" in service:
            assert service["init"] is True, name
    redis = compose["services"]["redis"]["command"]
    assert redis[redis.index("--appendfsync") + 1] == "everysec"
    assert redis[redis.index("--maxmemory-policy") + 1] == "noeviction"


def test_compose_takes_its_secrets_from_the_environment(compose):
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = set(re.findall(r"\$\{(\w+):\?", text))
    assert secrets == {"SECRET_KEY", "DB_PASSWORD", "REDIS_PASSWORD", "FLOWER_PASSWORD"}
    offered = set(re.findall(r"^(\w+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert offered == secrets
    assert "${" not in str(compose["services"]["postgres"]["image"]) and "/" not in "postgres:16"


def test_images_need_no_registry_host_and_pin_a_major_version(compose):
    images = [service["image"] for service in compose["services"].values() if "build" not in service]
    dockerfile = (ROOT / "ops/docker/Dockerfile").read_text()
    images += re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    for image in images:
        assert re.fullmatch(r"[a-z]+:\d+(\.\d+)?(-slim)?", image), image


def test_the_image_runs_as_an_ordinary_user_and_copies_what_exists():
    lines = (ROOT / "ops/docker/Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0")
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert all((ROOT / source).exists() for source in copied), copied
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in


def health_of(process: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "ops/docker/healthy.py", process, **environment)


@pytest.mark.parametrize("process", ["web", "flower"])
def test_a_container_whose_process_does_not_answer_is_not_healthy(process):
    done = health_of(process, WEB_PORT="9", FLOWER_PORT="9")
    assert done.returncode == 1 and f"{process} is not well" in done.stderr


def test_a_container_is_healthy_exactly_while_its_process_works(platform, eventually):
    here = database_environment()
    for process in ("dispatcher", "worker"):
        assert f"{process} is not well" in health_of(process, **here).stderr

    platform.start_dispatcher()
    worker = platform.start_worker()

    for process in ("dispatcher", "worker"):
        eventually(lambda process=process: health_of(process, **here).returncode == 0)
    worker.stop()
    assert health_of("worker", **here).returncode == 1


# --- Pages --------------------------------------------------------------------------------------------


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table row of a page."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize("state", list(State))
def test_the_page_on_the_life_of_a_task_knows_every_state_and_move(state):
    [row] = [row for row in rows_of("lifecycle.md") if row[0] == f"`{state.value}`"]
    _, _, comes_from, status = row
    assert {State(name) for name in filter(None, comes_from.split(", "))} == COMES_FROM[state]
    assert status == WIRE[state]


def test_the_page_on_configuration_is_up_to_date():
    assert settings_page.page() == settings_page.PAGE.read_text(), "run `make docs`"


def test_every_setting_is_on_the_page_on_configuration():
    page = settings_page.PAGE.read_text()
    sources = [settings_page.SOURCE, settings_page.SERVERS]
    read = {
        call.args[0].value
        for source in sources
        for call in ast.walk(ast.parse(source.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "env"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    assert len(read) > 40
    assert {name for name in map(str, read) if f"`{name}`" not in page} == set()


def missing_tests(page: str) -> list[str]:
    """Tests that a page names, as `path::name`, and that do not exist."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())
    assert named, f"{page} names no tests"
    return [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists()
        or not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]


def test_the_page_on_failure_modes_names_tests_that_exist():
    assert missing_tests("docs/failure-modes.md") == []


def test_every_failure_mode_has_a_test():
    rows = [row for row in rows_of("failure-modes.md") if row[0] not in ("what goes wrong", "---")]
    assert len(rows) > 40
    assert [row[0] for row in rows if len(row) != 3 or "::test_" not in row[2]] == []


# What may ask this machine for the time, and why that decides nothing about a handler's task.
MAY_ASK_THE_CLOCK = {
    "worker/plain.py",  # plain tasks: kombu's scores in Redis are times of the worker
    "worker/flower.py",  # what Flower shows
    "worker/requests.py",  # what `inspect` shows
    "lifecycle/archive.py",  # names of files
    "worker/channel.py",  # files that a dead worker has left, which have this machine's times
}


def test_the_engine_does_not_ask_this_machine_for_the_time():
    engine = ROOT / "platform" / "capataz"
    sources = [
        engine / "beat.py",
        *(path for folder in ("lifecycle", "models", "worker") for path in (engine / folder).rglob("*.py")),
    ]
    asking = {
        str(path.relative_to(engine))
        for path in sources
        if re.search(r"\btime\.time\(|\b(datetime|timezone)\.now\(|\.utcnow\(|\.today\(", path.read_text())
    }
    assert asking == MAY_ASK_THE_CLOCK


def test_the_glossary_has_the_words():
    words = {word.strip(" *") for row in rows_of("glossary.md") for word in row[0].split(",")}
    expected = """
        handler task attempt queue worker claim run finish ledger heartbeat loss submit dispatch window bundle
        retry cancel recover quarantine schedule prune event
    """
    assert set(expected.split()) - words == set()
    assert "dead letter" in words


def test_the_page_on_the_rules_names_every_rule_and_what_exists():
    rows = [row for row in rows_of("rules.md") if row[0].isdigit()]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 36)]
    for _, _, where, held_by in rows:
        for file in re.findall(r"`([^`]+)`", where):
            assert (ROOT / "platform/capataz" / file).is_file(), file
        tests = re.findall(r"`(tests/[^`:]+)::(test_\w+)`", held_by)
        assert tests or "decisions/" in held_by or held_by.startswith("not "), held_by
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(), name


@pytest.mark.parametrize(
    "command", ["call", "result", "inspect", "control", "events", "list", "report", "purge", "status"]
)
def test_every_command_of_celery_has_a_line(command):
    first = [re.match(r"`(\w+)", row[0]) for row in rows_of("celery.md")]
    assert command in {match[1] for match in first if match}


@pytest.mark.parametrize(
    ("page", "call"),
    [
        ("README.md", "shown.greet(RunningTask(uuid4(), 'x', 1, 1), shown.Greeting(name='Ana'))"),
        ("docs/handlers.md", "shown.render(task, shown.Invoice(customer=7, month='2026-01'))"),
    ],
)
def test_the_examples_of_the_pages_work(page, call, tmp_path):
    [example, *_] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (tmp_path / "shown.py").write_text(example)
    script = (
        "from uuid import uuid4\nfrom capataz.handlers import RunningTask\nimport shown\n"
        f"task = RunningTask(uuid4(), 'x', 1, 1)\nprint({call})"
    )
    roots = os.pathsep.join([str(ROOT / "platform"), str(ROOT), str(tmp_path)])
    done = run(
        sys.executable, "manage.py", "shell", "-v", "0", "-c", script,
        PYTHONPATH=roots, CAPATAZ_HANDLERS="tasks,shown",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Hello, Ana!" in done.stdout or "/exports/7-2026-01" in done.stdout
