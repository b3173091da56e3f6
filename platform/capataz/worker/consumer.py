"""Celery's consumer, reconnecting steadily and surviving any message."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

from celery import current_app
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as StockConsumer
from celery.worker.consumer.consumer import maybe_shutdown
from django.conf import settings

from capataz import handlers, pointer

RECONNECT = 1.0  # seconds between two tries; the stock steps grow to 30
MAX_TIME_LIMIT = 366 * 24 * 3600.0  # seconds that a plain task may ask for

_log = logging.getLogger(__name__)


class Consumer(StockConsumer):
    """Tells the station when the connection comes and goes, and never dies of a message."""

    def on_close(self) -> None:
        """The connection is lost: what the pool drops now is given back first."""
        self.controller.station.disconnected()
        super().on_close()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Redis is lost, or it answers and refuses: then it is asked again only after a while."""
        with warnings.catch_warnings():
            # Of a change in Celery 6, at every loss: what our tasks do then is not Celery's choice.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            _log.warning("Redis refuses, the next try is in a second: %s", exc)
            time.sleep(RECONNECT)

    def register_with_event_loop(self, hub: Any) -> None:
        """The event loop is about to turn."""
        super().register_with_event_loop(hub)
        self.controller.station.connected(self)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, trying every second for as long as it takes."""

        def on_error(error: BaseException, interval: float) -> None:
            _log.warning("no connection to %s: %s", conn.as_uri(), error)

        conn = conn.ensure_connection(
            on_error,
            max_retries=None,
            interval_start=RECONNECT,
            interval_step=0,
            interval_max=RECONNECT,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return conn

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """The function that takes every message; one that it cannot take is dropped and logged."""
        take = super().create_task_handler(*args, **kwargs)
        passing = self.connection_errors

        def on_task_received(message: Any) -> None:
            if why := _fault(message):
                _log.warning("dropped a message: %s", why)
                message.reject_log_error(_log, passing)
                return
            try:
                take(message)
            except Exception as error:
                # To kombu a KeyError is a lost connection; here it is a message that lacks something.
                if isinstance(error, passing) and not isinstance(error, KeyError):
                    raise
                _log.warning("dropped a message that no handler could take", exc_info=True)
                message.reject_log_error(_log, passing)

        return on_task_received

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A pointer to a type that this worker does not know, while a new version is rolled out, say."""
        if pointer.is_pointer(message.headers):
            name, ids = message.headers["task"], pointer.decode(message.headers)
            _log.warning("passes a pointer to the unknown type %r on", name)
            self.controller.station.pass_on(
                name, ids, lambda: message.reject_log_error(_log, self.connection_errors)
            )
            return
        super().on_unknown_task(body, message, exc)


def _fault(message: Any) -> str:
    """Why workers must not take this message; empty if they may."""
    told = message.headers if isinstance(message.headers, dict) else {}
    name = told.get("task")
    if not isinstance(name, str):
        return "no header names it: older protocols of Celery are not spoken here"
    return "" if handlers.is_registered(name) else _fault_of_plain(name, told, message)


def _fault_of_plain(name: str, told: dict[str, Any], message: Any) -> str:
    if _is_of_another_protocol(message):  # which hides its limits in the body
        return "its body is not of Celery's message protocol 2"
    if pointer.is_pointer(told):
        # A type that a newer version knows: Celery calls it an unknown task.
        return "it points to handlers' tasks, and names none of them" if name in current_app.tasks else ""
    if settings.PLAIN_TASKS and name not in settings.PLAIN_TASKS:
        return "CAPATAZ_PLAIN_TASKS does not name it"
    # The pool meets these when a child begins: there a text makes the whole worker exit, and every worker
    # that is sent the task after it.
    limits = told.get("timelimit")
    if limits is not None and not (
        isinstance(limits, list) and len(limits) == 2 and all(map(_is_time_limit, limits))
    ):
        return "its time limits are no numbers of seconds"
    return ""


def _is_of_another_protocol(message: Any) -> bool:
    try:
        return not isinstance(message.payload, list)
    except Exception:
        return False  # what cannot be decoded is refused by Celery


def _is_time_limit(limit: Any) -> bool:
    return limit is None or (
        isinstance(limit, int | float) and not isinstance(limit, bool) and 0 <= limit <= MAX_TIME_LIMIT
    )
