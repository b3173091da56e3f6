"""Backups: PostgreSQL and Redis in a folder with a manifest, made while the platform runs, and put back.

A backup whose folder has its name is complete. Redis is copied first: what a plain task writes in between is
then in PostgreSQL, and the plain task runs again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import redis
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from capataz import durable
from capataz.database import conninfo, own_backend
from capataz.services import redis_copy
from capataz.services.binaries import PostgresClient, find_client
from capataz.services.errors import BackupFailed
from capataz.services.launcher import wrapped

NAME = re.compile(r"\d{8}T\d{6}Z")  # the time of its beginning, in UTC
DATABASE, BROKER, MANIFEST = "postgres.dump", "redis.jsonl.gz", "manifest.json"
# Workers get no identities that were given out between the backup and now: whoever still has one of them
# must not be taken for its new owner. Nobody starts more workers than this in that time.
IDENTITIES_APART = 100_000
# What a dump makes, in the order in which it can be dropped, and how pg_restore lists it.
KINDS = ("MATERIALIZED VIEW", "VIEW", "TABLE", "SEQUENCE", "FUNCTION")
MADE_BY_DUMP = re.compile(
    rf"^\d+; \d+ \d+ (?P<kind>{'|'.join(KINDS)}) (?P<schema>\S+)"
    r" (?P<name>[^(\n]+?)(?P<arguments>\(.*\))? \S+$",
    re.MULTILINE,
)
LAST_WORDS = 1000  # characters of a program's complaint
CHUNK = 1024 * 1024

Report = Callable[[int, str], None]


def back_up(report: Report = lambda percent, message: None) -> dict[str, Any]:
    """Make a backup in BACKUP_DIR, then delete those that need not be kept; returns what was made.

    One at a time on this machine: returns ``{"skipped": why}`` while another one is being made. Raises
    BackupFailed, with all earlier backups as they were, if it cannot be made.
    """
    folder = Path(settings.BACKUP_DIR)
    began = datetime.now(UTC)
    name = f"{began:%Y%m%dT%H%M%SZ}"
    try:
        with _alone(folder) as alone:
            if not alone:
                return {"skipped": "another backup is being made"}
            durable.clear(folder)
            with durable.new_folder(folder / name) as new:
                report(5, "Redis")
                broker = _copy_redis(new / BROKER)
                report(20, "PostgreSQL")
                database = _dump_postgres(new / DATABASE)
                manifest = {"at": began.isoformat(timespec="seconds"), "postgres": database, "redis": broker}
                with durable.new_file(new / MANIFEST) as file:
                    file.write(json.dumps(manifest, indent=2).encode() + b"\n")
            report(95, "older backups")
            return {"backup": str(folder / name), **manifest, "deleted": _rotate(folder)}
    except OSError as error:
        raise BackupFailed(f"No backup in {folder}: {error}") from None


def backups(folder: Path | None = None) -> list[Path]:
    """The backups that are there, oldest first."""
    place = Path(settings.BACKUP_DIR) if folder is None else folder
    return sorted(path.parent for path in place.glob(f"*/{MANIFEST}") if NAME.fullmatch(path.parent.name))


def find(name: str) -> Path:
    """The backup of this name or path; ``latest`` is the newest. Raises BackupFailed if there is none."""
    if name == "latest":
        if not (there := backups()):
            raise BackupFailed(f"There is no backup in {settings.BACKUP_DIR}.")
        return there[-1]
    path = Path(settings.BACKUP_DIR) / name  # an absolute path stays what it is
    if not (path / MANIFEST).is_file():
        raise BackupFailed(f"{path} is no backup: it has no {MANIFEST}.")
    return path


def read_manifest(backup: Path) -> dict[str, Any]:
    """What the backup holds, after its files were compared with it. Raises BackupFailed if they differ."""
    try:
        manifest: dict[str, Any] = json.loads((backup / MANIFEST).read_text())
        for part in ("postgres", "redis"):
            about = manifest[part]
            if _fingerprint(backup / about["file"]) != {key: about[key] for key in ("bytes", "sha256")}:
                raise BackupFailed(f"{backup / about['file']} is damaged: it is not what the manifest says.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupFailed(f"{backup} cannot be read: {error!r}") from None
    return manifest


def restore_postgres(backup: Path, manifest: dict[str, Any], database: str) -> None:
    """Put the tables of a backup into this database, in place of those of the same names; all or nothing.

    ``manifest`` is what ``read_manifest`` has found right, ``database`` a URL or DSN. Raises BackupFailed.
    """
    made_by, major = int(manifest["postgres"]["major"]), _major(database)
    if major < made_by:
        raise BackupFailed(f"The dump needs PostgreSQL {made_by} or later; this server has version {major}.")
    _replace_tables(find_client(major), backup / DATABASE, database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT setval(sequence::regclass, nextval(sequence::regclass) + %s)"
            " FROM pg_get_serial_sequence('capataz_worker', 'id') AS sequence",
            [IDENTITIES_APART],
        )
        connection.execute("ANALYZE")


def restore_redis(backup: Path, url: str) -> int:
    """Put the keys of a backup that ``read_manifest`` has found right into this Redis; returns how many.

    Raises BackupFailed.
    """
    try:
        return redis_copy.read(url, backup / BROKER)
    except redis.RedisError as error:
        raise BackupFailed(f"Redis cannot be restored: {error}") from None


def what_is_in_the_way(database: str | None, url: str | None) -> list[str]:
    """Why these should not be written to: they are in use, or hold something that nobody has a copy of."""
    found: list[str] = []
    try:
        if database is not None:
            with psycopg.connect(database, autocommit=True) as connection:
                found += _objections(connection)
        if url is not None and redis_copy.holds_messages(url):
            found.append("Redis holds messages")
    except (psycopg.Error, redis.RedisError) as error:
        raise BackupFailed(f"A server does not answer: {error}") from None
    return found


def _objections(connection: psycopg.Connection[Any]) -> Iterator[str]:
    [[sessions]] = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND application_name LIKE 'capataz %'"
    ).fetchall()
    if sessions:
        yield f"{sessions} sessions of the platform's processes are connected to the database"
    [[there]] = connection.execute("SELECT to_regclass('capataz_task') IS NOT NULL").fetchall()
    if there:
        [[tasks]] = connection.execute("SELECT EXISTS (SELECT FROM capataz_task)").fetchall()
        if tasks:
            yield "the database has tasks"


def _dump_postgres(path: Path) -> dict[str, Any]:
    major = _major(conninfo())
    client, (place, secret) = find_client(major), _without_password(conninfo())
    _run(
        [
            *(str(client.pg_dump), "--format=custom", "--no-owner", "--no-privileges", "--no-password"),
            # A table that somebody alters: better no backup this hour than one that all others wait for.
            *("--lock-wait-timeout=10s", f"--file={path}", f"--dbname={place}"),
        ],
        secret,
    )
    _listing(client, path)  # whether it can be read
    durable.sync(path)
    return {"file": path.name, "major": major, **_fingerprint(path)}


def _replace_tables(client: PostgresClient, dump: Path, database: str) -> None:
    """Drop what the dump holds and make it anew, in one transaction.

    Not with pg_restore's own --clean, which fails on the keys of partitions. psql commits only when it is
    told to, after the last line of a dump that was read without an error.
    """
    place, secret = _without_password(database)
    read = [str(client.pg_restore), "--no-owner", "--no-privileges", "--file=-", str(dump)]
    write = [str(client.psql), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={place}"]
    with tempfile.TemporaryFile() as complaints:
        reader = _start(read, "", stdout=subprocess.PIPE, stderr=complaints)
        writer = _start(write, secret, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints)
        with contextlib.suppress(BrokenPipeError), reader, writer:  # else psql has complained and ended
            assert reader.stdout and writer.stdin
            writer.stdin.write(f"BEGIN;\n{_drops(client, dump)}".encode())
            shutil.copyfileobj(reader.stdout, writer.stdin)
            if reader.wait() == 0:
                writer.stdin.write(b"COMMIT;\n")
        if reader.returncode or writer.returncode:
            complaints.seek(0)
            words = complaints.read(LAST_WORDS).decode(errors="replace").strip()
            raise BackupFailed(f"The database is as it was: the dump could not be put back: {words}")


def _drops(client: PostgresClient, dump: Path) -> str:
    """Statements that drop what the dump would make. What else is in the database stays."""
    found = [match.groupdict() for match in MADE_BY_DUMP.finditer(_listing(client, dump))]
    return "".join(
        f"DROP {each['kind']} IF EXISTS {_quoted(each['schema'])}.{_quoted(each['name'])}"
        f"{each['arguments'] or ''} CASCADE;\n"
        for each in sorted(found, key=lambda each: KINDS.index(each["kind"]))
    )


def _listing(client: PostgresClient, dump: Path) -> str:
    """What is in the dump, a line each."""
    return _run([str(client.pg_restore), "--list", str(dump)], "")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _copy_redis(path: Path) -> dict[str, Any]:
    try:
        keys = redis_copy.write(settings.CELERY_BROKER_URL, path)
        version = redis_copy.version(settings.CELERY_BROKER_URL)
    except redis.RedisError as error:
        raise BackupFailed(f"Redis cannot be backed up: {error}") from None
    return {"file": path.name, "version": version, "keys": keys, **_fingerprint(path)}


def _run(argv: list[str], secret: str) -> str:
    """Run a program to its end; returns its output. Raises BackupFailed with its last words if it fails."""
    with _start(argv, secret, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        try:
            output, words = program.communicate()
        except BaseException:
            program.kill()
            raise
    if program.returncode:
        text = words.decode(errors="replace").strip()[:LAST_WORDS]
        raise BackupFailed(f"{Path(argv[0]).name} failed: {text}")
    return output.decode()


def _start(
    argv: list[str], secret: str, *, stdin: int = subprocess.DEVNULL, **output: Any
) -> subprocess.Popen[bytes]:
    """A program that dies with us. The password is in its environment, which only its owner can read."""
    return subprocess.Popen(
        wrapped(argv, signal.SIGTERM, None),
        env={**os.environ, "LC_ALL": "C", "PGPASSWORD": secret},
        stdin=stdin,
        umask=0o077,
        **output,
    )


def _without_password(database: str) -> tuple[str, str]:
    parts: dict[str, Any] = dict(conninfo_to_dict(database))
    secret = str(parts.pop("password", None) or os.environ.get("PGPASSWORD", ""))
    return make_conninfo(**parts), secret


def _major(database: str) -> int:
    """The server's version. Raises BackupFailed also if there is a pooler in between: the PostgreSQL clients
    would leave their settings in sessions that it lends to others."""
    try:
        with psycopg.connect(database) as connection:
            if own_backend(connection) is None:
                raise BackupFailed(
                    "Backups need a DATABASE_URL that leads straight to PostgreSQL, and not through a pooler."
                )
            return connection.info.server_version // 10_000
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL does not answer: {error}") from None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    durable.make_folder(folder)
    with open(folder / ".lock", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _rotate(folder: Path) -> list[str]:
    """Keep the newest backup of each of the last hours and days that have one; returns what was deleted."""
    there = {path.name: path for path in reversed(backups(folder))}
    kept = _newest_of_each(there, len("20260101T00"), settings.BACKUP_HOURS)
    kept |= _newest_of_each(there, len("20260101"), settings.BACKUP_DAYS)
    for name in there.keys() - kept:
        # Under another name first: half of a backup must not look like one.
        away = there[name].rename(folder / f"{durable.UNFINISHED}{name}")
        shutil.rmtree(away)
    return sorted(there.keys() - kept)


def _newest_of_each(names: dict[str, Path], length: int, count: int) -> set[str]:
    """Of names, the latest first: the first with each beginning of this length, for so many beginnings."""
    newest: dict[str, str] = {}
    for name in names:
        newest.setdefault(name[:length], name)
    return set(list(newest.values())[:count])
