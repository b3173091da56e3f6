"""Celery's task events about single tasks, for Flower and whoever else listens; nothing when nobody does."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from capataz.worker.holding import Bundle, Ended, Ending, Held

if TYPE_CHECKING:
    from capataz.worker.station import Station

_EVENT = {
    Ending.SUCCEEDED: "task-succeeded",
    Ending.FAILED: "task-failed",
    Ending.LOST: "task-failed",
    Ending.GIVEN_BACK: "task-rejected",
    Ending.CANCELLED: "task-revoked",
    Ending.SNOOZED: "task-rejected",
}


class Flower:
    """Sends events; the payload and the result are never in them."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def received(self, bundle: Bundle) -> None:
        """A worker has these tasks."""
        if send := self._sender():
            for held in bundle.items:
                send(
                    "task-received",
                    uuid=str(held.id),
                    name=held.type,
                    args="()",
                    kwargs="{}",
                    retries=held.attempts,
                )

    def started(self, helds: Iterable[Held]) -> None:
        """A child works on these tasks."""
        if send := self._sender():
            for held in helds:
                send("task-started", uuid=str(held.id), timestamp=_wall(held.started))

    def ended(self, ended: Iterable[Ended]) -> None:
        """These runs are over and committed."""
        if send := self._sender():
            for each in ended:
                self._ended(send, each)

    def _ended(self, send: Any, each: Ended) -> None:
        held = each.held
        if held.started is not None and not held.shown_running:
            send("task-started", uuid=str(held.id), timestamp=_wall(held.started))
        about: dict[str, Any] = {"uuid": str(held.id)}
        if each.ending is Ending.SUCCEEDED and held.started is not None:
            about |= {"result": "", "runtime": each.ended - held.started}
        elif each.ending in (Ending.FAILED, Ending.LOST):
            about |= {"exception": each.error or "", "traceback": ""}
        elif each.ending is Ending.CANCELLED:
            about |= {"terminated": True, "signum": None, "expired": False}
        send(_EVENT[each.ending], **about)

    def _sender(self) -> Any:
        dispatcher = getattr(self._station.worker.consumer, "event_dispatcher", None)
        return dispatcher.send if dispatcher is not None and dispatcher.enabled else None


def _wall(monotonic: float | None) -> float:
    return time.time() - (time.monotonic() - monotonic) if monotonic is not None else time.time()
