"""``manage.py newtask``: write a handler and its test."""

from __future__ import annotations

import importlib.util
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from capataz import handlers
from capataz.handlers import QUEUE_NAME

NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?")

HANDLER = '''"""The handler ``{name}``."""

from __future__ import annotations

from pydantic import BaseModel

from capataz.handlers import RunningTask, handler


class {model}(BaseModel):
    """What the work is about."""

    subject: str


@handler("{name}", payload={model}{queue})
def {function}(task: RunningTask, payload: {model}) -> dict[str, str]:
    """Say here what this does: the API shows it. It may run more than once, and has to bear that."""
    task.progress(50, "half of it is done")
    return {{"subject": payload.subject}}
'''

TEST = '''"""What ``{name}`` promises."""

from typing import Any

import pytest

from capataz.errors import InvalidSubmission
from capataz.lifecycle.submission import submit
from capataz.testing import run_handler
from {module} import {function}


def test_it_does_its_work() -> None:
    came = run_handler({function}, {{"subject": "something"}})
    assert came.result == {{"subject": "something"}}
    assert came.reported == [(50, "half of it is done")]


def test_a_payload_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidSubmission):
        run_handler({function}, {{}})


def test_a_task_succeeds(capataz_tasks: Any) -> None:
    submit("{name}", {{"subject": "something"}})
    capataz_tasks.drain()
    capataz_tasks.assert_submitted("{name}", state="succeeded", times=1)
'''


class Command(BaseCommand):
    """Writes one file with one decorated function, and its test beside it."""

    help = "Write a new handler with a test that passes, into the package that it belongs to."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Its name, and where it is to wait and to be written."""
        parser.add_argument("name", type=_name, help="its type, such as invoices.render or render")
        parser.add_argument("--queue", type=_queue, help="where its tasks wait (default)")
        parser.add_argument(
            "--package",
            type=Path,
            help="the folder to write to (of the first package in CAPATAZ_HANDLERS of yours)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Write both files, or neither."""
        name: str = options["name"]
        folder = options["package"] or _package_of(name)
        function = name.rpartition(".")[2]
        about = {
            "name": name,
            "function": function,
            "model": "".join(word.capitalize() for word in function.split("_")),
            "queue": f', queue="{options["queue"]}"' if options["queue"] else "",
            "module": f"{folder.name}.{function}",
        }
        files = {
            folder / f"{function}.py": HANDLER.format(**about),
            folder / "tests" / f"test_{function}.py": TEST.format(**about),
        }
        if handlers.is_registered(name):
            raise CommandError(f"there is a handler {name} already")
        for path in files:
            if path.exists():
                raise CommandError(f"{path} exists already: nothing was written")
        for path in (folder / "__init__.py", *files):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name != "__init__.py" or not path.exists():
                path.write_text(files.get(path, ""))
                self.stdout.write(str(path))
        self._say_what_is_left(folder, function)

    def _say_what_is_left(self, folder: Path, function: str) -> None:
        if "__all__" in (folder / "__init__.py").read_text():
            self.stderr.write(
                f"import {function} in {folder / '__init__.py'}, which says what it has in __all__"
            )
        if folder.name not in settings.CAPATAZ_HANDLERS:
            names = ",".join([*settings.CAPATAZ_HANDLERS, folder.name])
            self.stderr.write(f"set CAPATAZ_HANDLERS={names}, with {folder.resolve().parent} on PYTHONPATH")


def _package_of(name: str) -> Path:
    """The package that the type's first word names, else the first of the user's own."""
    own = [each for each in settings.CAPATAZ_HANDLERS if each != "tasks" and "." not in each]
    wanted = name.partition(".")[0]
    for each in ([wanted] if wanted in own else []) + own:
        spec = importlib.util.find_spec(each)
        if spec is not None and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0])
    raise CommandError("CAPATAZ_HANDLERS names no package of yours: say where to with --package FOLDER")


def _name(text: str) -> str:
    if not NAME.fullmatch(text) or len(text) > 64:
        raise ArgumentTypeError(
            "one or two words of a-z, 0-9 and _, with a dot between them, at most 64 characters"
        )
    return text


def _queue(text: str) -> str:
    if not QUEUE_NAME.fullmatch(text):
        raise ArgumentTypeError(f"must match {QUEUE_NAME.pattern}")
    return text
