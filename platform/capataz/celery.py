"""The Celery app: handlers become Celery tasks whose messages are pointers; plain tasks stay plain."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery
from django.apps import apps
from kombu import Queue

from capataz import handlers

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "capataz.settings")


class App(Celery):
    """Celery, except that a handler called by its name leaves a row, as it does by every other door."""

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a task by name: a handler's is submitted, a plain one goes to the broker as ever."""
        if handlers.is_registered(name):
            return self.tasks[name].apply_async(args, kwargs, **options)
        return super().send_task(name, args, kwargs, **options)


app = App("capataz", task_cls="capataz.worker.plain:PlainTask")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.on_after_finalize.connect
def _register_handlers(**_: Any) -> None:
    from capataz.worker.handler_task import make_task

    handlers.on_registration(lambda handler: app.register_task(make_task(handler)))


def declare_queues() -> None:
    """Tell Celery the queues of all handlers: a worker without ``-Q`` consumes them all."""
    from capataz.lifecycle.submission import known_queues

    app.conf.task_queues = [Queue(name, routing_key=name) for name in sorted(known_queues())]


app.steps["worker"].add("capataz.worker.station:StationStep")
app.steps["consumer"].add("capataz.worker.plain:VisibilityRefresh")

if not apps.apps_ready:  # typed by hand: `celery -A capataz ...` imports this module first
    django.setup()
