"""Letters: the e-mails that have to arrive, and whether they did."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from capataz.management.demo.outputs import digest, found


@dataclass(frozen=True)
class Letter:
    """One e-mail, known by its subject."""

    subject: str
    to: str
    attachment: str | None = None  # a client's path

    def fault(self, arrived: list[EmailMessage], place: Path) -> str:
        """What is wrong with what arrived under this subject; empty if nothing is."""
        if not arrived:
            return "has not arrived"
        return next((fault for message in arrived if (fault := self._fault(message, place))), "")

    def _fault(self, message: EmailMessage, place: Path) -> str:
        if message["X-RcptTo"] != self.to:
            return f"went to {message['X-RcptTo']}, not to {self.to}"
        attached = [_digest(part) for part in message.iter_attachments()]
        wanted = [digest(found(place, self.attachment))] if self.attachment else []
        return "" if attached == wanted else "does not carry its attachment"


@dataclass(frozen=True)
class Mailbag:
    """What has arrived, by subject."""

    arrived: dict[str, list[EmailMessage]]

    @classmethod
    def of(cls, messages: Iterable[EmailMessage]) -> Mailbag:
        """Sort these messages."""
        arrived: dict[str, list[EmailMessage]] = defaultdict(list)
        for message in messages:
            arrived[str(message["Subject"])].append(message)
        return cls(dict(arrived))

    def faults(self, letters: Iterable[Letter], place: Path) -> dict[str, str]:
        """What is wrong with these letters: subject to fault. What is right is left out."""
        return {
            letter.subject: fault
            for letter in letters
            if (fault := letter.fault(self.arrived.get(letter.subject, []), place))
        }

    def strangers(self, letters: Iterable[Letter]) -> list[str]:
        """Subjects that nobody sent."""
        return sorted(self.arrived.keys() - {letter.subject for letter in letters})

    def repeated(self) -> int:
        """How many messages arrived beyond the first of their subject."""
        return sum(len(messages) - 1 for messages in self.arrived.values())


def _digest(part: EmailMessage) -> str:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return hashlib.sha256(content).hexdigest()
