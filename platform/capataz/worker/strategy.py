"""What a worker does with a message for a handler: hand its ids to the ledger, and nothing else."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from capataz import pointer
from capataz.lifecycle import submission

# Seconds until a message is tried again that PostgreSQL was not there for.
AGAIN = 1.0
# What follows a task, as options of a call and in a message: a row cannot have it.
_FOLLOWING = {"link": "callbacks", "link_error": "errbacks", "chain": "chain", "chord": "chord"}

_log = logging.getLogger(__name__)


def pointer_strategy(task: Any, app: Any, consumer: Any, **_: Any) -> Any:
    """Celery's extension point ``Task.Strategy``: returns the function that takes this type's messages."""
    station, errors = consumer.controller.station, consumer.connection_errors

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        if task.handler.is_durable and not pointer.is_pointer(message.headers):
            adopt(message)
            return
        try:
            ids = pointer.decode(message.headers)
        except ValueError as error:
            _log.warning("dropped a message for %s that points to no task: %s", task.name, error)
            reject(_log, errors)
            return
        station.announce(task.name, ids, lambda: ack(_log, errors))

    def adopt(message: Any) -> None:
        """A message that was sent before the task became durable, or by a program that does not know that it
        is: it becomes the row that it would have been. Its id is the row's, so that it does so once."""
        try:
            _submit(task, message)
        except (OperationalError, InterfaceError):
            consumer.timer.call_after(AGAIN, adopt, (message,))
            return
        except Exception as error:
            _log.warning("dropped a message for %s that cannot be a row: %s", task.name, error)
            message.reject_log_error(_log, errors)
            return
        finally:
            connections.close_all()  # children must not be forked with it
        message.ack_log_error(_log, errors)

    return on_message


def _submit(task: Any, message: Any) -> None:
    args, kwargs, embedded = message.payload
    told = message.headers
    hard, soft = told.get("timelimit") or (None, None)
    asked = {
        "eta": told.get("eta"),
        "expires": told.get("expires"),
        "time_limit": hard,
        "soft_time_limit": soft,
    }
    asked |= {name: embedded.get(of) for name, of in _FOLLOWING.items()}
    submission.from_celery(task.handler, args, kwargs, {**asked, "task_id": str(uuid.UUID(told["id"]))})
