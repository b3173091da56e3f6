"""A local SMTP server that keeps every message it is sent and delivers none."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

LARGEST_MESSAGE = 32 * 1024 * 1024  # bytes


class SmtpSink:
    """An SMTP server on the loopback address that writes what it receives below ``folder``.

    Messages are laid out as in a Maildir: complete ones are ``new/<time>-<random>.eml``, and are moved
    there from ``tmp``. Each file is the message as received, after two lines with its envelope:
    ``X-MailFrom`` and ``X-RcptTo``. With port 0, a free one is chosen at the start.
    """

    def __init__(
        self, folder: Path, port: int = 0, notify: Callable[[EmailMessage], None] | None = None
    ) -> None:
        self.folder = Path(folder)
        self._notify = notify
        self._controller = _Controller(self, hostname="127.0.0.1", port=port, data_size_limit=LARGEST_MESSAGE)

    @property
    def port(self) -> int:
        """The TCP port; 0 before the start if it was to be chosen."""
        return int(self._controller.port)

    def start(self) -> None:
        """Listen, in a thread of its own. Raises OSError if the port is taken."""
        for name in ("tmp", "new"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._controller.start()

    def stop(self) -> None:
        """Stop listening. The messages stay."""
        self._controller.stop(no_assert=True)

    def messages(self) -> list[EmailMessage]:
        """All messages in the folder, oldest first, also those of an earlier sink."""
        return [_read(path) for path in sorted((self.folder / "new").glob("*.eml"))]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Keep a message; called by the SMTP server, in its thread."""
        path = self._keep(_envelope_lines(envelope) + envelope.original_content)
        if self._notify is not None:
            self._notify(_read(path))
        return "250 Message kept"

    def _keep(self, data: bytes) -> Path:
        name = f"{time.time_ns()}-{secrets.token_hex(4)}.eml"
        temporary = self.folder / "tmp" / name
        temporary.write_bytes(data)
        return temporary.rename(self.folder / "new" / name)


class _Controller(Controller):
    def _trigger_server(self) -> None:
        # The library would connect to port 0; the port is known only now.
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def _envelope_lines(envelope: Any) -> bytes:
    recipients = ", ".join(envelope.rcpt_tos)
    return f"X-MailFrom: {envelope.mail_from}\r\nX-RcptTo: {recipients}\r\n".encode()


def _read(path: Path) -> EmailMessage:
    return message_from_bytes(path.read_bytes(), policy=policy.default)
