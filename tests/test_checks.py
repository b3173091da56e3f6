"""``manage.py check``: what would break later is told before, in plain words."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from tests.commands.test_newtask import manage


def ids(**options: Any) -> list[str]:
    found = [message for message in run_checks(**options) if message.id.startswith("capataz.")]
    assert all(message.hint for message in found)
    return [message.id for message in found]


BROKEN = {
    "raises": ("x = 1\nundefined_name\n", "NameError: name 'undefined_name' is not defined ({file}, line 2)"),
    "syntax": ("def\n", "SyntaxError: invalid syntax ({file}, line 1)"),
    "imports": (
        "import no_such_library\n",
        "ModuleNotFoundError: No module named 'no_such_library' ({file}, line 1)",
    ),
    "policy": (
        "from capataz.handlers import handler\nfrom capataz.policy import fixed\n"
        "@handler('shop.policy', retry=fixed(attempts=0))\ndef f(task, payload): ...\n",
        "a handler in 'shop.policy': attempts must be 1 to 1000, not 0",
    ),
}


def test_broken_modules_are_told_by_check_and_stop_everything_else(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    (shop / "tests").mkdir(parents=True)
    (shop / "__init__.py").touch()
    (shop / "tests" / "__init__.py").write_text("raise AssertionError('tests are no handlers')")
    for name, (text, _) in BROKEN.items():
        (shop / f"{name}.py").write_text(text)
    checked = manage(tmp_path, "check")
    refused = manage(tmp_path, "dispatcher")
    for done in (checked, refused):
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        for name, (_, said) in BROKEN.items():
            assert said.format(file=shop / f"{name}.py") in done.stderr
    assert checked.stderr.count("(capataz.E010)") == len(BROKEN)
    assert refused.stderr.count("Capataz cannot start: ") == len(BROKEN)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CELERY_WORKER_POOL", "prefork", "capataz.E011"),
        ("CELERY_BEAT_SCHEDULER", "celery.beat:PersistentScheduler", "capataz.E011"),
        ("CELERY_TASK_ACKS_LATE", False, "capataz.W011"),
        ("CELERY_TASK_ALWAYS_EAGER", True, "capataz.W011"),
        ("CELERY_ACCEPT_CONTENT", ["json", "pickle"], "capataz.E012"),
    ],
)
def test_settings_of_celery_that_break_a_guarantee_are_found(
    settings: Any, name: str, value: Any, told: str
) -> None:
    assert ids() == []
    setattr(settings, name, value)
    assert ids() == [told]


def test_schedules_that_cannot_be_followed_are_found(db: None) -> None:
    every = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.create(
        name="good", task="demo.echo", interval=every, kwargs=json.dumps({"message": "x"}), queue="default"
    )
    assert ids(databases=["default"]) == []
    PeriodicTask.objects.create(name="typo", task="demo.ecco", interval=every)
    PeriodicTask.objects.create(name="off", task="demo.ecco", interval=every, enabled=False)
    PeriodicTask.objects.create(name="lost", task="demo.echo", interval=every, queue="nowhere")
    assert ids(databases=["default"]) == ["capataz.E014", "capataz.E013"]
    assert ids() == [], "without being asked for, it costs no query"
