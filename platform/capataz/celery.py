"""The Celery app: handlers become Celery tasks whose messages are pointers; plain tasks stay plain."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click
import django
from celery import Celery
from django.apps import apps
from django.conf import settings
from django.db import OperationalError
from kombu import Queue

from capataz import handlers
from capataz.errors import CapatazError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "capataz.settings")


PREFIX = "CELERY_"
# Celery's code for Django looks for this one under its full name.
DB_REUSE_MAX = "CELERY_DB_REUSE_MAX"


class CelerySettings(Mapping[str, Any]):
    """The settings whose names begin with CELERY_, under Celery's own names, and no others.

    ``celery report`` and ``inspect conf`` show all that Celery has been given, and star out what they know
    for a secret by its exact name. REDIS_URL they would show, and CELERY_BROKER_URL, but not ``broker_url``.
    """

    def __getitem__(self, name: str) -> Any:
        full = name if name == DB_REUSE_MAX else PREFIX + name.upper()
        if (not name.islower() and name != DB_REUSE_MAX) or not hasattr(settings, full):
            raise KeyError(name)
        return getattr(settings, full)

    def __iter__(self) -> Iterator[str]:
        yield DB_REUSE_MAX
        for name in dir(settings):
            if name.startswith(PREFIX) and name != DB_REUSE_MAX:
                yield name.removeprefix(PREFIX).lower()

    def __len__(self) -> int:
        return sum(1 for _ in self)


class App(Celery):
    """Celery, except that a handler called by its name leaves a row, as it does by every other door."""

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a task by name: a handler's is submitted, a plain one goes to the broker as ever.

        Raises InvalidSubmission if a handler cannot accept it, or a plain task is to be followed by one.
        """
        if handlers.is_registered(name):
            return self._submit(name, args, kwargs, options)
        from capataz.worker import canvas

        canvas.refuse_handlers(*(options.get(each) for each in ("link", "link_error", "chain", "chord")))
        return super().send_task(name, args, kwargs, **options)

    def _task_from_fun(self, fun: Any, name: str | None = None, base: Any = None, **options: Any) -> Any:
        from capataz.worker import durable_task

        name = name or self.gen_task_name(fun.__name__, fun.__module__)
        base = durable_task.base_for(name, base or self.Task)
        task = super()._task_from_fun(fun, name=name, base=base, **options)
        durable_task.register(task)
        return task

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task that is a class; a durable one becomes a handler."""
        from capataz.worker import durable_task

        task = super().register_task(task, **options)
        durable_task.register(task)
        return task

    def _submit(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Any:
        try:
            return self.tasks[name].apply_async(args, kwargs, **options)
        except (CapatazError, OperationalError) as error:
            if not _typed_by_hand("call"):
                raise
            # Not a traceback: whoever typed it sees what to do about it.
            raise click.ClickException(f"{name} was not submitted: {error}") from None


def _typed_by_hand(command: str) -> bool:
    """Whether this process is ``celery -A capataz <command>``."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == command


app = App("capataz", task_cls="capataz.worker.plain:PlainTask")
app.config_from_object(CelerySettings())
app.autodiscover_tasks()


@app.on_after_finalize.connect
def _register_handlers(**_: Any) -> None:
    from capataz.worker import canvas
    from capataz.worker.handler_task import make_task

    canvas.guard()

    def register(handler: handlers.Handler[Any]) -> None:
        if handler.name not in app._tasks:  # as a durable task is
            app.register_task(make_task(handler))

    handlers.on_registration(register)


def declare_queues() -> None:
    """Tell Celery the queues of all handlers: a worker without ``-Q`` consumes them all."""
    from capataz.lifecycle.submission import known_queues

    app.conf.task_queues = [Queue(name, routing_key=name) for name in sorted(known_queues())]


app.steps["worker"].add("capataz.worker.station:StationStep")
app.steps["consumer"].add("capataz.worker.plain:VisibilityRefresh")

if not apps.apps_ready:  # typed by hand: `celery -A capataz ...` imports this module first
    django.setup()
