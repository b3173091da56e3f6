"""Capataz: a task platform on Celery, Redis, PostgreSQL and Django."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``DurableTask``, on its first use: to import it, Django has to be configured."""
    if name == "DurableTask":
        from capataz.worker.durable_task import DurableTask

        return DurableTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
