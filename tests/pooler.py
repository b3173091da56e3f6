"""A pooler in transaction mode, as small as it can be: it lends a session for one transaction at a time.

Like pgbouncer it ignores the options that a client starts with, announces keys of its own, and resets nothing
between two clients. Sessions are lent in turn, so that hardly any client gets the same one twice in a row.
It knows no COPY and no cancel requests.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import threading
from dataclasses import dataclass

import psycopg

NO_SSL, NO_GSS = 80877103, 80877104
# What PostgreSQL tells of itself to a client that connects.
TOLD = [
    *("server_version", "server_encoding", "client_encoding", "DateStyle", "integer_datetimes", "TimeZone"),
    *("standard_conforming_strings", "IntervalStyle", "is_superuser", "session_authorization"),
]


class Gone(Exception):
    """The other side has closed the connection."""


@dataclass
class Peer:
    """One end of a connection that speaks PostgreSQL's protocol."""

    socket: socket.socket

    def read(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise Gone
            parts += part
        return parts

    def message(self) -> tuple[bytes, bytes]:
        """(kind, everything) of the next message."""
        head = self.read(5)
        return head[:1], head + self.read(struct.unpack("!I", head[1:])[0] - 4)

    def startup(self) -> None:
        """Read the first message; encryption is refused."""
        while True:
            [length] = struct.unpack("!I", self.read(4))
            [code] = struct.unpack("!I", self.read(length - 4)[:4])
            if code not in (NO_SSL, NO_GSS):
                return
            self.socket.sendall(b"N")


class Pooler:
    """Listens on ``port`` and lends ``sessions`` sessions at ``url``; made when they are first needed."""

    def __init__(self, url: str, *, sessions: int = 7) -> None:
        self._url = url
        self._idle: queue.Queue[psycopg.Connection | None] = queue.Queue()
        for _ in range(sessions):
            self._idle.put(None)
        self._made: list[psycopg.Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more, and end every session."""
        self._listener.close()
        for made in self._made:
            made.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(Gone, OSError, psycopg.Error):
            peer = Peer(client)
            peer.startup()
            client.sendall(self._welcome())
            while True:
                self._serve_transaction(peer, *peer.message())

    def _serve_transaction(self, client: Peer, kind: bytes, message: bytes) -> None:
        if kind == b"X":
            raise Gone
        session, is_idle = self._take(), False
        try:
            with socket.socket(fileno=os.dup(session.fileno())) as raw:
                raw.setblocking(True)
                server = Peer(raw)
                while True:
                    raw.sendall(message)
                    if kind in b"QS" and _answer(client, server) == b"I":
                        is_idle = True
                        return
                    kind, message = client.message()
        finally:
            if not is_idle:
                session.close()
            self._idle.put(session)

    def _take(self) -> psycopg.Connection:
        session = self._idle.get()
        if session is None or session.closed:
            try:
                session = psycopg.connect(self._url, autocommit=True, options="-c lock_timeout=5000")
            except psycopg.Error:
                self._idle.put(None)
                raise
            self._made.append(session)
        return session

    def _welcome(self) -> bytes:
        session = self._take()
        told = [(name, session.info.parameter_status(name)) for name in TOLD]
        self._idle.put(session)
        status = b"".join(_framed(b"S", f"{name}\0{value}\0".encode()) for name, value in told if value)
        keys = _framed(b"K", os.urandom(8))
        return _framed(b"R", bytes(4)) + status + keys + _framed(b"Z", b"I")


def _answer(client: Peer, server: Peer) -> bytes:
    """Pass the server's answer on, up to where it is ready again; returns the state of its transaction."""
    kind = b""
    while kind != b"Z":
        kind, message = server.message()
        client.socket.sendall(message)
    return message[-1:]


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body
