"""Which PostgreSQL and Redis this process uses: the environment's, or those of the running platform."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from environs import Env, EnvError
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from capataz import home

# Every connection gives up on its own: a peer that froze must not hold a lock, and a lock that nobody
# releases must not hold us. Milliseconds, except the keepalives, which are seconds. Django's connections,
# which handlers use too, get more patience than the engine's own short statements need.
SILENT_PEER = 10  # seconds after which a session is dropped whose other end answers nothing
_SESSION = {
    # That of solid-state disks: with the default, made for turning ones, a hundred ids on a table that was
    # never analyzed are looked for by reading all of it.
    "random_page_cost": 1.1,
    # The server's side of TCP below: a session whose client vanished must not keep a worker's lock.
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": SILENT_PEER * 1000,
}
DJANGO_SESSION = {**_SESSION, "idle_in_transaction_session_timeout": 60_000, "lock_timeout": 30_000}
ENGINE_SESSION = {**_SESSION, "idle_in_transaction_session_timeout": 5_000, "lock_timeout": 5_000}
TCP = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": SILENT_PEER * 1000,
}


# The names that say the same as the two URLs, piece by piece.
PARTS = (
    *("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD"),
    *("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"),
)

_A_PORT = "must be a number from 1 to 65535"


def database_url(env: Env) -> str | None:
    """The DSN from DATABASE_URL, the DB_* names, or the running platform; None if there is none.

    Raises EnvError when DATABASE_URL and the DB_* names contradict each other.
    """
    names = {
        "host": env.str("DB_HOST", None),
        "port": env.str("DB_PORT", None),
        "dbname": env.str("DB_NAME", None),
        "user": env.str("DB_USER", None),
        "password": env.str("DB_PASSWORD", None),
    }
    given = {key: value for key, value in names.items() if value}
    _check_port("DB_PORT", given.get("port"))
    url = env.str("DATABASE_URL", None)
    if url:
        try:
            parts = conninfo_to_dict(url)
        except ProgrammingError:
            raise _unreadable("DATABASE_URL is not a PostgreSQL URL or DSN") from None
        if not all(_is_port(port) for port in str(parts.get("port") or "").split(",") if port):
            raise _unreadable(f"the port in DATABASE_URL {_A_PORT}")
        if "://" in url and "@" in str(parts.get("dbname") or ""):
            raise _unreadable("DATABASE_URL has an @ after its /")
        unsaid = {"port": "5432", "password": ""} if "host" in parts else {}
        _refuse_conflict("DATABASE_URL", "DB_", {**unsaid, **parts}, given)
        return str(url)
    if "host" in given:
        return make_conninfo(**{"dbname": "queue_system", "user": "postgres", **given})
    return home.database_url()


def redis_url(env: Env) -> str | None:
    """The URL from REDIS_URL, the REDIS_* names, or the running platform; None if there is none.

    Raises EnvError when REDIS_URL and the REDIS_* names contradict each other.
    """
    host = env.str("REDIS_HOST", None)
    port = env.str("REDIS_PORT", None)
    _check_port("REDIS_PORT", port)
    password = env.str("REDIS_PASSWORD", None)
    url = env.str("REDIS_URL", None)
    if url:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise _unreadable("REDIS_URL is not a URL") from None
        if parts.scheme not in ("redis", "rediss"):
            raise EnvError("REDIS_URL must start with redis:// or rediss://")
        try:
            found = {
                "host": parts.hostname,
                "port": str(parts.port or 6379),
                "password": unquote(parts.password or ""),
            }
        except ValueError:
            raise _unreadable(f"the port in REDIS_URL {_A_PORT}") from None
        if "@" in parts.path + parts.query + parts.fragment:
            raise _unreadable("REDIS_URL has an @ after its /")
        if "password" in parse_qs(parts.query):
            raise EnvError(
                "REDIS_URL must have its password before the @: what follows it is printed in logs"
            )
        given = {"host": host, "port": port, "password": password}
        _refuse_conflict("REDIS_URL", "REDIS_", found, {k: v for k, v in given.items() if v})
        return str(url)
    if host:
        secret = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{secret}{host}:{port or 6379}/0"
    return home.redis_url()


def django_database(url: str | None) -> dict[str, Any]:
    """Django's settings for the database at ``url``; without one, settings that fail when used."""
    parts = {key: str(value) for key, value in conninfo_to_dict(url or "").items() if value is not None}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.pop("dbname", "capataz"),
        "USER": parts.pop("user", ""),
        "PASSWORD": parts.pop("password", ""),
        "HOST": parts.pop("host", "" if url else "no-database-configured.invalid"),
        "PORT": parts.pop("port", ""),
        "CONN_MAX_AGE": 300,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {**TCP, **parts, "options": session_options(DJANGO_SESSION)},
    }


def session_options(settings: dict[str, float]) -> str:
    """These settings as libpq's ``options``, which set them when the session starts."""
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _check_port(name: str, value: str | None) -> None:
    if value and not _is_port(value):
        raise EnvError(f"{name} {_A_PORT}")


def _is_port(value: str) -> bool:
    return value.isdecimal() and 1 <= int(value) <= 65535


def _unreadable(what: str) -> EnvError:
    """Not the parser's own message: that quotes what it stumbled on, which may be half of a password."""
    return EnvError(f"{what}: write the characters : / ? # @ % of a password as %3A %2F %3F %23 %40 %25")


def _refuse_conflict(url_name: str, prefix: str, found: dict[str, Any], given: dict[str, str]) -> None:
    for key, value in given.items():
        if key in found and found[key] is not None and str(found[key]) != value:
            name = prefix + {"dbname": "NAME"}.get(key, key.upper())
            raise EnvError(
                f"{url_name} and {name} contradict each other: set one of them, or make them agree"
            )
