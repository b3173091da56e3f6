"""Run the local SMTP server that keeps messages instead of delivering them."""

from __future__ import annotations

import signal
import threading
from argparse import ArgumentParser
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from capataz.services.smtp_sink import SmtpSink


class Command(BaseCommand):
    """``manage.py smtp_sink``: one line for every message, and their number at the end."""

    help = "Receive e-mail on the loopback address and keep it as .eml files, until SIGINT or SIGTERM."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The defaults are where the platform sends its mail and a folder in the data directory."""
        parser.add_argument("--port", type=int, default=settings.EMAIL_PORT, help="TCP port; 0 is any")
        parser.add_argument("--folder", type=Path, default=Path(settings.CAPATAZ_DATA_DIR) / "mail")

    def handle(self, *args: Any, **options: Any) -> None:
        """Receive until told to stop. Raises CommandError if the port is taken."""
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        self._count = 0
        sink = SmtpSink(options["folder"], options["port"], notify=self._tell)
        try:
            sink.start()
        except OSError as error:
            raise CommandError(f"port {options['port']} cannot be used: {error}") from error
        self.stdout.write(f"SMTP on 127.0.0.1:{sink.port}, messages in {sink.folder / 'new'}")
        self.stdout.flush()
        stop.wait()
        sink.stop()
        self.stdout.write(f"{self._count} messages received")

    def _tell(self, message: EmailMessage) -> None:
        self._count += 1
        self.stdout.write(f"{self._count}: to {message['X-RcptTo']!r}: {str(message['Subject'])!r}")
        self.stdout.flush()
