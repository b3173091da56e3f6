"""The Redis transport of kombu, leaner for our pointers and harder to kill for everybody.

A pointer needs no acknowledgement in Redis: the row grants every start and a lost pointer is published
again, so its delivery is kept in memory only. That saves two of three round trips per message. Plain
tasks keep kombu's acknowledgements.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str

from capataz.pointer import is_pointer

_log = logging.getLogger(__name__)


class QoS(stock.QoS):
    """Deliveries that wait for their acknowledgement: pointers in memory, others in Redis too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pointers: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a delivery."""
        if is_pointer(message.headers):
            self.pointers.add(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget a delivery. Never raises: what a broken connection keeps is restored and runs again."""
        self._settle(delivery_tag, lambda: super(QoS, self).ack(delivery_tag))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Forget a delivery or, with ``requeue``, put a plain one back. Never raises."""
        self._settle(delivery_tag, lambda: super(QoS, self).reject(delivery_tag, requeue))

    def _settle(self, delivery_tag: str, in_redis: Any) -> None:
        if delivery_tag in self.pointers:
            self.pointers.discard(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
            return
        try:
            in_redis()
        except Exception as error:
            _log.warning("could not settle a delivery; it will come again: %r", error)
            virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put every unacknowledged plain delivery back. Pointers are published again by the dispatcher."""
        self._forget_pointers()
        try:
            super().restore_unacked(client)
        except Exception:
            # Without Redis they stay where they are, and come back after the visibility timeout.
            _log.warning("could not restore deliveries", exc_info=True)
            self._delivered.clear()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """As ``restore_unacked``, at the end of the connection."""
        self._forget_pointers()
        try:
            super().restore_unacked_once(stderr)
        except Exception:
            _log.warning("could not restore deliveries", exc_info=True)

    def plain_deliveries(self) -> list[str]:
        """The tags of plain deliveries that are not acknowledged yet."""
        return [tag for tag in list(self._delivered) if tag not in self.pointers and tag not in self._dirty]

    def _forget_pointers(self) -> None:
        for tag in self.pointers:
            self._delivered.pop(tag, None)
            self._dirty.discard(tag)
        self.pointers.clear()


class Channel(stock.Channel):
    """A channel that keeps one client for its commands, and drops what it cannot decode."""

    QoS = QoS
    undecodable = 0
    _commands: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """A client for a command. kombu builds one per command: a fifth of a publish's CPU time."""
        if client:
            yield client
            return
        if self._commands is None or self._commands.connection_pool is not self.pool:
            self._commands = self._create_client()  # the pool is replaced after a fork
        yield self._commands

    def _brpop_read(self, **options: Any) -> bool:
        """Read one message. An entry that no client of ours wrote is dropped and counted.

        In the stock transport a list entry that is not a message makes the worker exit.
        """
        try:
            try:
                found = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not found:
                raise Empty
            self._deliver_entry(bytes_to_str(found[0]).rsplit(self.sep, 1)[0], found[1])
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _deliver_entry(self, queue: str, entry: bytes) -> None:
        self._queue_cycle.rotate(queue)
        message = _decode(entry)
        if message is None:
            self.undecodable += 1
            _log.warning("dropped an entry of queue %s that is not a message (%d bytes)", queue, len(entry))
            return
        try:
            self.connection._deliver(message, queue)
        except self.connection_errors:
            raise
        except Exception:
            self.undecodable += 1
            _log.warning("dropped a message of queue %s that cannot be delivered", queue, exc_info=True)


def _decode(entry: bytes) -> dict[str, Any] | None:
    """The message in a list entry; None if it lacks what kombu's delivery relies on."""
    try:
        message = json.loads(entry)
        headers, properties = message["headers"], message["properties"]
        texts = (
            message["body"],
            properties["delivery_tag"],
            properties["delivery_info"]["exchange"],
            properties["delivery_info"]["routing_key"],
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(headers, dict) or not all(isinstance(text, str) for text in texts):
        return None
    if is_pointer(headers):
        # A copy must not share its tag with the original: one's end would settle the other.
        properties["delivery_tag"] = str(uuid.uuid4())
    return message if isinstance(message, dict) else None


class Transport(stock.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel
