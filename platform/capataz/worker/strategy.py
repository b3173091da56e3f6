"""What a worker does with a message for a handler: hand its ids to the ledger, and nothing else."""

from __future__ import annotations

import logging
from typing import Any

from capataz import pointer

_log = logging.getLogger(__name__)


def pointer_strategy(task: Any, app: Any, consumer: Any, **_: Any) -> Any:
    """Celery's extension point ``Task.Strategy``: returns the function that takes this type's messages."""
    station, errors = consumer.controller.station, consumer.connection_errors

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any) -> None:
        try:
            ids = pointer.decode(message.headers)
        except ValueError as error:
            _log.warning("dropped a message for %s that points to no task: %s", task.name, error)
            reject(_log, errors)
            return
        station.announce(task.name, ids, lambda: ack(_log, errors))

    return on_message
