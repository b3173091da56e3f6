"""A server of our own: what PostgreSQL and Redis have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from capataz.services.child import Child, ProcessSpec
from capataz.services.errors import StartFailed
from capataz.services.keepsakes import Keepsakes
from capataz.services.waiting import eventually

LAST_LINES = 15  # of the log, shown when a server does not start


class Server(ABC):
    """One server on 127.0.0.1, its data under ``home``. Whoever starts it has locked the home."""

    name: str

    def __init__(self, home: Path) -> None:
        self.home = home
        self.directory = home / self.name
        self.keepsakes = Keepsakes(home)
        self.child: Child | None = None
        self._port: int | None = None

    @property
    def port(self) -> int:
        """Its port: the one it had last time, if that is still free. Does not change from then on."""
        if self._port is None:
            self._port = self.keepsakes.port(f"{self.name}-port")
        return self._port

    @property
    def password(self) -> str:
        """Its password."""
        return self.keepsakes.password(f"{self.name}-password")

    @property
    @abstractmethod
    def url(self) -> str:
        """Where to connect, with the password."""

    @abstractmethod
    def spec(self) -> ProcessSpec:
        """How to run it, for a supervisor. Creates the data on first use."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers a query now."""

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.home / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Start it and return at once. From the main thread: it dies with the thread that starts it."""
        spec = self.spec()
        if spec.prepare:
            spec.prepare()
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as output:
            self.child = Child.start(spec, output)

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Return when it answers. Raises StartFailed, with its last words, if it does not or has ended."""
        if not eventually(lambda: self._is_dead() or self.answers(), seconds) or self._is_dead():
            raise StartFailed(f"{self.name} did not start. It said last:\n{self.last_words()}")

    def stop(self, seconds: float = 15) -> None:
        """Stop it without loss; kill it, still without loss, if that takes longer than ``seconds``."""
        if self.child is not None:
            self.child.stop(seconds)
            self.child = None

    def kill(self) -> None:
        """End it as a crash would."""
        if self.child is not None:
            self.child.kill()
            self.child.collect()
            self.child = None

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "(nothing)"
        return "\n".join(lines[-LAST_LINES:])

    def _is_dead(self) -> bool:
        return self.child is not None and self.child.has_exited()
