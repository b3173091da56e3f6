"""A PostgreSQL of our own, in the foreground."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import psycopg

from capataz.services.account import unprivileged_account
from capataz.services.binaries import PostgresBinaries, find_postgres
from capataz.services.child import ProcessSpec
from capataz.services.errors import StartFailed
from capataz.services.launcher import wrapped
from capataz.services.orphans import clear_orphans
from capataz.services.server import Server
from capataz.services.shared_place import FOR_DATA, new_directory, shared_place

MAX_CONNECTIONS = 200
MIB = 1024 * 1024
# The programs read the language of their messages from the environment, and fail on one that the machine
# lacks.
LANGUAGE = {"LC_ALL": "C", "LANG": "C", "TZ": "UTC"}


class Postgres(Server):
    """The database ``capataz``, owned by the role ``capataz``, which may create more databases.

    Reached over TCP on 127.0.0.1 with a password, because every tool understands such a URL and a socket's
    path may be at most 107 bytes long. There is no superuser that could log in.
    """

    name = "postgres"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._account = unprivileged_account(self.data)

    @property
    def url(self) -> str:
        """A DSN that psycopg, and Django's settings through it, understand."""
        return f"postgresql://capataz:{self.password}@127.0.0.1:{self.port}/capataz"

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return self.directory / "data"

    def spec(self) -> ProcessSpec:
        """How to run it. Creates the cluster on first use."""
        if self._version_of_data() is None:
            self._create()
        if self._password_set() != self._digest():
            self._set_password()
        return ProcessSpec(
            name=self.name,
            argv=[
                str(self._binaries().postgres),
                "-D",
                str(self.data.resolve()),
                *self._settings(),
            ],
            env={**os.environ, **LANGUAGE},
            cwd=Path("/"),
            user=self._account.identity if self._account else None,
            stop_signal=signal.SIGINT,  # fast: does not wait for clients
            death_signal=signal.SIGINT,
            is_server=True,
            prepare=self._clear,
        )

    def answers(self) -> bool:
        """Whether it answers a query now."""
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def _password_set(self) -> str:
        try:
            return self._password_mark.read_text()
        except FileNotFoundError:
            return ""

    @property
    def _password_mark(self) -> Path:
        return self.directory / "password-set"

    def _digest(self) -> str:
        return hashlib.sha256(self.password.encode()).hexdigest()

    def _set_password(self) -> None:
        """Make the role's password the one that the home remembers; it made a new one if that was lost."""
        self._clear()
        self._single_user(self._binaries(), self.data, f"ALTER ROLE capataz PASSWORD '{self.password}';\n")
        self._password_mark.write_text(self._digest())

    def _settings(self) -> list[str]:
        values = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": f"{_shared_buffers()}MB",
            "fsync": "on",
            "synchronous_commit": "on",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            "logging_collector": "off",
        }
        return [part for name, value in values.items() for part in ("-c", f"{name}={value}")]

    def _version_of_data(self) -> int | None:
        try:
            return int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None

    def _binaries(self) -> PostgresBinaries:
        return find_postgres(self._account, self._version_of_data())

    def _clear(self) -> None:
        """Make way for a start: after a kill, old processes may live on, and their lock names a pid."""
        if not self.data.is_dir():
            raise StartFailed(f"{self.data} is gone, or cannot be read.")
        clear_orphans(self.data, signal.SIGINT)
        # PostgreSQL takes any living process with the pid in this file for its predecessor, and in a
        # container pids repeat from start to start. Nothing works here any more, so the file is stale.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _create(self) -> None:
        """Make the cluster, the role and the database. They appear complete or not at all."""
        self._make_directory()
        binaries = self._binaries()
        new = self.directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._account:
            os.chown(new, *self._account.identity)
        self._initdb(binaries, new)
        sql = "CREATE ROLE capataz LOGIN CREATEDB;\nCREATE DATABASE capataz OWNER capataz;\n"
        self._single_user(binaries, new, sql)
        new.rename(self.data)

    def _make_directory(self) -> None:
        """Make the directory in the home, or elsewhere with a link if the cluster's owner cannot reach it."""
        if self.directory.is_symlink() and not self.directory.exists():
            raise StartFailed(
                f"The data that {self.directory} points to, {self.directory.readlink()}, is gone."
            )
        if not self.directory.exists():
            if self._account and not self._account.can_reach(self.home):
                elsewhere = new_directory(shared_place(FOR_DATA), "postgres-")
                (elsewhere / "belongs-to").write_text(f"{self.home}\n")
                self.directory.symlink_to(elsewhere)
            else:
                self.directory.mkdir(mode=0o711)
        if self._account and not self._account.can_reach(self.directory):
            raise StartFailed(
                f"{self._account.name}, whom PostgreSQL runs as, cannot reach {self.directory.resolve()}. "
                "Let everyone walk through every directory above it, or name another data directory."
            )

    def _initdb(self, binaries: PostgresBinaries, data: Path) -> None:
        basic = [
            str(binaries.initdb), "-D", str(data.resolve()), "-U", "postgres", "--encoding=UTF8",
            # Nobody comes in over a local socket, and over TCP only who has a password. postgres has none.
            "--auth-local=reject", "--auth-host=scram-sha-256", "--no-instructions",
        ]  # fmt: skip
        answers = []
        for locale in _locales(binaries.major):
            answer = self._run([*basic, *locale])
            if answer.returncode == 0:
                return
            answers.append(answer.stdout)
        raise StartFailed(f"initdb failed:\n{answers[-1]}")

    def _single_user(self, binaries: PostgresBinaries, data: Path, sql: str) -> None:
        argv = [
            str(binaries.postgres),
            "--single",
            "-D",
            str(data.resolve()),
            "template1",
        ]
        answer = self._run(argv, sql)
        # It goes on after an error, and ends as if nothing had happened.
        if answer.returncode or "ERROR:" in answer.stdout or "FATAL:" in answer.stdout:
            raise StartFailed(f"PostgreSQL's database could not be prepared:\n{answer.stdout}")

    def _run(self, argv: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
        user = self._account.identity if self._account else None
        return subprocess.run(
            wrapped(argv, signal.SIGTERM, user),
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **LANGUAGE},
            cwd="/",
            check=False,
        )


def _shared_buffers() -> int:
    """MiB: a sixteenth of the memory, since much else runs beside it, within what is useful."""
    return int(min(512, max(32, psutil.virtual_memory().total // 16 // MIB)))


def _locales(major: int) -> list[list[str]]:
    """What to try: the order of code points, which needs nothing from the machine from 17 on."""
    if major >= 17:
        return [["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]
