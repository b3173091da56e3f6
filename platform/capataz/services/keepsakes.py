"""What a home remembers from one start to the next: passwords and ports, one file each."""

from __future__ import annotations

import os
import random
import secrets
import socket
from pathlib import Path

# Below the ports that the kernel hands to outgoing connections. One of those could be taken while a server
# restarts, and a client that keeps connecting to such a port on its own machine can end up connected to
# itself.
PORTS = range(10_240, 32_768)


class Keepsakes:
    """The remembered values of one home, readable by its owner only."""

    def __init__(self, home: Path) -> None:
        self._directory = home / "secrets"

    def remembers(self, name: str) -> bool:
        """Whether there is a value of this name."""
        return (self._directory / name).is_file()

    def password(self, name: str) -> str:
        """The password of this name; made on first use. Letters and digits only."""
        return self._recall(name) or self._remember(name, secrets.token_hex(24))

    def port(self, name: str) -> int:
        """A free port on 127.0.0.1: the one used last, else another one."""
        last = self._recall(name)
        if last.isdigit() and is_free("127.0.0.1", int(last)):
            return int(last)
        return int(self._remember(name, str(free_port())))

    def _recall(self, name: str) -> str:
        try:
            return (self._directory / name).read_text().strip()
        except FileNotFoundError:
            return ""

    def _remember(self, name: str, value: str) -> str:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / name
        new = path.with_name(f".{name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(value + "\n")
        new.replace(path)
        return value


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that the closed connections of the last one do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on, outside the range of outgoing connections."""
    for _ in range(1000):
        port = random.choice(PORTS)
        if is_free("127.0.0.1", port):
            return port
    raise OSError("no free port on 127.0.0.1")
