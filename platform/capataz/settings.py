"""Every setting, read from the environment once, with its unit, its default and the reason for it.

Django's and Celery's own settings follow from these at the end. A value that makes no sense stops the
start with a message that says how to mend it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environs import Env, EnvError
from marshmallow.validate import ContainsOnly, OneOf, Range, Regexp

from capataz import home
from capataz.allowed import api_url, each, encryption_key, outbound_secrets
from capataz.keyring import new_key
from capataz.priority import DEFAULT as DEFAULT_PRIORITY
from capataz.priority import REDIS_STEPS
from capataz.servers import database_url, django_database, redis_url

ROOT = Path(__file__).resolve().parent.parent.parent

env = Env(eager=False)
env.read_env(str(ROOT / ".env"), recurse=False)

# --- Where things are ---------------------------------------------------------------------------------

# The data directory: embedded servers, uploads, outputs, logs.
CAPATAZ_DATA_DIR: Path = home.home()
# Client-named paths such as /uploads/x are looked up under these and nowhere else.
UPLOAD_ROOT: Path = env.path("UPLOAD_ROOT", CAPATAZ_DATA_DIR / "uploads")
PROCESSED_ROOT: Path = env.path("PROCESSED_ROOT", CAPATAZ_DATA_DIR / "processed")
DATA_ROOT: Path = env.path("DATA_ROOT", CAPATAZ_DATA_DIR / "data")
EXPORT_ROOT: Path = env.path("EXPORT_ROOT", CAPATAZ_DATA_DIR / "exports")

# --- The process --------------------------------------------------------------------------------------

_environment = OneOf(["development", "production", "test"], error="use development, production or test")
# The seed's name for it is NODE_ENV. A default is not validated, so each name is.
_node_env: str = env.str("NODE_ENV", "development", validate=_environment)
APP_ENV: str = env.str("APP_ENV", _node_env, validate=_environment)
LOG_LEVEL: str = env.str(
    "LOG_LEVEL",
    "info",
    validate=OneOf(["error", "warn", "info", "debug"], error="use error, warn, info or debug"),
)
PORT: int = env.int("PORT", 3000, validate=Range(1, 65535))
# Modules that register handlers; each is imported by every process.
CAPATAZ_HANDLERS: list[str] = env.list("CAPATAZ_HANDLERS", ["tasks"])
# demo.* handlers crash and sleep at a client's wish, so they exist only where somebody asked for them.
CAPATAZ_DEMO: bool = env.bool("CAPATAZ_DEMO", APP_ENV != "production")

# --- What a task may be -------------------------------------------------------------------------------

# How often a task is tried again whose handler declares no retry policy, and the longest first wait, in
# milliseconds, which doubles with every failure.
MAX_RETRIES: int = env.int("MAX_RETRIES", 3, validate=Range(0, 999))
RETRY_DELAY: int = env.int("RETRY_DELAY", 5000, validate=Range(0, 3_600_000))
# The largest payload, in bytes of JSON: a row is read by the claim, so it has to stay small.
MAX_PAYLOAD = env.int("CAPATAZ_MAX_PAYLOAD", 256 * 1024, validate=Range(1024, 16 * 1024 * 1024))
# The largest result, in bytes of JSON; a larger one is a failed attempt that says so.
MAX_RESULT = env.int("CAPATAZ_MAX_RESULT", 1024 * 1024, validate=Range(1024, 64 * 1024 * 1024))

# --- Workers ------------------------------------------------------------------------------------------

# Slots of a worker started by `manage.py up` (seed name).
MAX_CONCURRENT_JOBS: int = env.int("MAX_CONCURRENT_JOBS", 5, validate=Range(1, 1000))
# Seconds between two heartbeats, and how many looks without one make a worker dead. A free lock and
# three silent looks, or fifteen silent looks alone: fourteen beats can be lost to a slow network before
# a healthy worker is robbed.
HEARTBEAT = env.float("CAPATAZ_HEARTBEAT_SECONDS", 1.0, validate=Range(0.1, 10))
LOOKS_WITH_FREE_LOCK = env.int("CAPATAZ_LOOKS_WITH_FREE_LOCK", 3, validate=Range(2, 60))
LOOKS_WITHOUT_BEAT = env.int("CAPATAZ_LOOKS_WITHOUT_BEAT", 15, validate=Range(3, 600))
# Seconds for which an idle worker may hear of nothing while tasks of its queues are released and unclaimed,
# before it takes its consumer for dead and connects to Redis anew. Well above a dispatcher's restart.
DEAF = env.float("CAPATAZ_DEAF_SECONDS", 10.0, validate=Range(1, 3600))
# Seconds for which the event loop of a worker that is connected may stand still, before the worker gives
# everything back and exits: such a loop is beyond recovery.
HUNG = env.float("CAPATAZ_HUNG_SECONDS", 60.0, validate=Range(2, 3600))
# Seconds a stopping worker lets running tasks go on before it kills and gives them back.
SHUTDOWN_GRACE = env.float("CAPATAZ_SHUTDOWN_GRACE_SECONDS", 10.0, validate=Range(0, 3600))
# Child deaths that quarantine a task, and worker deaths that do.
MAX_LOSSES = env.int("CAPATAZ_MAX_LOSSES", 3, validate=Range(1, 100))
MAX_WORKER_LOSSES = env.int("CAPATAZ_MAX_WORKER_LOSSES", 10, validate=Range(1, 1000))
# How often a handler may put a task off (snooze it) before it becomes a dead letter.
MAX_SNOOZES = env.int("CAPATAZ_MAX_SNOOZES", 1000, validate=Range(0, 30_000))
# Names of the plain Celery tasks that workers may run; empty allows all that are registered. Whoever can
# write to Redis can start a plain task with any arguments.
PLAIN_TASKS: list[str] = env.list("CAPATAZ_PLAIN_TASKS", [])
# Celery tasks whose calls are rows, by patterns of their names (`shop.tasks.*`): they get the guarantees of
# handlers without a change to their code. `@shared_task(base=DurableTask)` does it for one task.
DURABLE_TASKS: list[str] = env.list("CAPATAZ_DURABLE_TASKS", [])
# Queues that tasks of Django's Tasks framework may name.
_task_queues: list[str] = env.list("CAPATAZ_TASK_QUEUES", ["default"])
# Seconds a plain Celery task may go unacknowledged by a worker that no longer refreshes it.
VISIBILITY_TIMEOUT = env.int("CAPATAZ_VISIBILITY_TIMEOUT_SECONDS", 60, validate=Range(5, 86400))

# Whether django-celery-results' TaskResult, and its admin, know handlers' tasks too: one more insert for each
# task that ends, in the commit that ends it, and its result kept twice. AsyncResult answers either way.
TASK_RESULTS: bool = env.bool("CAPATAZ_TASK_RESULTS", True)

# --- Dispatch -----------------------------------------------------------------------------------------

# Seconds between two looks of the dispatcher: while work waits, and at rest (it is woken by NOTIFY).
DISPATCH_BUSY_POLL = env.float("CAPATAZ_DISPATCH_BUSY_POLL_SECONDS", 0.03, validate=Range(0.001, 1))
DISPATCH_IDLE_POLL = env.float("CAPATAZ_DISPATCH_IDLE_POLL_SECONDS", 1.0, validate=Range(0.05, 60))
# Bundles released ahead of the workers, as a multiple of their slots.
WINDOW = env.float("CAPATAZ_WINDOW", 2.0, validate=Range(1, 100))
# A queued task starts within so many seconds, whatever is more urgent, as long as workers get on.
AGEING_MAX = env.float("CAPATAZ_AGEING_MAX_SECONDS", 600.0, validate=Range(1, 7 * 86400))
# A bundle is meant to run this many seconds, and holds at most this many tasks.
BUNDLE_SECONDS = env.float("CAPATAZ_BUNDLE_SECONDS", 0.1, validate=Range(0.001, 10))
BUNDLE_TASKS = env.int("CAPATAZ_BUNDLE_TASKS", 100, validate=Range(1, 250))
# Seconds after which a released task that nobody claimed is published again; doubled each time, up to
# the longest.
VERIFY_FIRST = env.float("CAPATAZ_VERIFY_FIRST_SECONDS", 3.0, validate=Range(0.5, 60))
VERIFY_LONGEST = env.float("CAPATAZ_VERIFY_LONGEST_SECONDS", 60.0, validate=Range(1, 3600))

# --- Circuits -----------------------------------------------------------------------------------------

# What a circuit does whose declaration does not say; seed 000's names, of which both spellings work. So many
# failures in a row open it; a call that takes longer than TIMEOUT milliseconds is a failure, and after
# RESET_TIMEOUT milliseconds a probe is let through. Below 100, somebody has meant seconds.
_failure_threshold: int = env.int("failureThreshold", 5, validate=Range(1, 1000))
FAILURE_THRESHOLD: int = env.int("FAILURE_THRESHOLD", _failure_threshold, validate=Range(1, 1000))
_call_timeout: int = env.int("timeout", 30_000, validate=Range(100, 86_400_000))
CALL_TIMEOUT: int = env.int("TIMEOUT", _call_timeout, validate=Range(100, 86_400_000))
_reset_timeout: int = env.int("resetTimeout", 60_000, validate=Range(100, 86_400_000))
RESET_TIMEOUT: int = env.int("RESET_TIMEOUT", _reset_timeout, validate=Range(100, 86_400_000))

# --- Retention, in days, per outcome ------------------------------------------------------------------

KEEP_SUCCEEDED_DAYS = env.float("CAPATAZ_KEEP_SUCCEEDED_DAYS", 7, validate=Range(0.001, 36500))
KEEP_DEAD_DAYS = env.float("CAPATAZ_KEEP_DEAD_DAYS", 90, validate=Range(0.001, 36500))
KEEP_CANCELLED_DAYS = env.float("CAPATAZ_KEEP_CANCELLED_DAYS", 30, validate=Range(0.001, 36500))
KEEP_EXPIRED_DAYS = env.float("CAPATAZ_KEEP_EXPIRED_DAYS", 30, validate=Range(0.001, 36500))
# What handlers log, apart from their tasks: it takes the most room, and is missed the least.
KEEP_TASK_LOGS_DAYS = env.float("CAPATAZ_KEEP_TASK_LOGS_DAYS", 14, validate=Range(0.001, 36500))
# Roll-ups, which the charts are drawn from: a row for each queue, type and hour.
KEEP_ROLLUPS_DAYS = env.float("CAPATAZ_KEEP_ROLLUPS_DAYS", 90, validate=Range(0.001, 36500))

# --- Upkeep -------------------------------------------------------------------------------------------

# Outcomes whose tasks are written to the archive before retention deletes them, of succeeded, dead, cancelled
# and expired; empty archives none. By default the dead ones, which are the ones that somebody may have to
# explain later: they move there when they are 90 days old, see CAPATAZ_KEEP_DEAD_DAYS.
ARCHIVED: list[str] = env.list(
    "CAPATAZ_ARCHIVED",
    ["dead"],
    validate=ContainsOnly(
        ["succeeded", "dead", "cancelled", "expired"], error="use succeeded, dead, cancelled or expired"
    ),
)
ARCHIVE_DIR: Path = env.path("CAPATAZ_ARCHIVE_DIR", CAPATAZ_DATA_DIR / "archive")
# Where backups lie: best on another disk, or on storage that all hosts with workers share.
BACKUP_DIR: Path = env.path("CAPATAZ_BACKUP_DIR", CAPATAZ_DATA_DIR / "backups")
# Hours and days of which the newest backup is kept: a day to find out what went wrong in, a week for what is
# noticed later.
BACKUP_HOURS = env.int("CAPATAZ_BACKUP_HOURS", 24, validate=Range(1, 10_000))
BACKUP_DAYS = env.int("CAPATAZ_BACKUP_DAYS", 7, validate=Range(0, 10_000))
# Days after which what a log was rotated to is deleted. Their sizes are bounded; old lines are of no use.
KEEP_LOGS_DAYS = env.float("CAPATAZ_KEEP_LOGS_DAYS", 14, validate=Range(0.001, 36500))

# --- Other services -----------------------------------------------------------------------------------

_token = Regexp(r"[\x21-\x7e]*\Z", error="use the token alone: ASCII, without spaces or line ends")
# Repositories, as owner/name, of whose issues and pull requests `external_sync` keeps copies; empty for none.
EXTERNAL_GITHUB_REPOSITORIES: list[str] = env.list(
    "EXTERNAL_GITHUB_REPOSITORIES",
    [],
    subcast=str.strip,
    validate=each(
        Regexp(
            r"[A-Za-z0-9_][A-Za-z0-9_-]{0,38}/(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,100}\Z",
            error="{input} is not a repository: write owner/name",
        )
    ),
)
# Sent to GitHub alone. Without one, only public repositories can be read, and only 60 times an hour.
GITHUB_TOKEN: str = env.str("GITHUB_TOKEN", "", validate=_token)
# Where GitHub's REST API is: another place for GitHub Enterprise. Plain http is for loopback addresses alone,
# since the token goes there.
GITHUB_API_URL: str = env.str("GITHUB_API_URL", "https://api.github.com", validate=api_url)
# Ids of the channels of whose messages `external_sync` keeps copies, such as C0123456789; empty for none. The
# app that the token belongs to has to be a member of them.
EXTERNAL_SLACK_CHANNELS: list[str] = env.list(
    "EXTERNAL_SLACK_CHANNELS",
    [],
    subcast=str.strip,
    validate=each(
        Regexp(
            r"[CDG][A-Z0-9]{2,20}\Z",
            error="{input} is not the id of a channel: write one such as C0123456789",
        )
    ),
)
# Sent to Slack alone. It needs the scope channels:history, or groups:history for private channels.
SLACK_TOKEN: str = env.str("SLACK_TOKEN", "", validate=_token)
# Where Slack's Web API is. Plain http is for loopback addresses alone, since the token goes there.
SLACK_API_URL: str = env.str("SLACK_API_URL", "https://slack.com/api", validate=api_url)
# Days since their last change after which the copies are deleted. The first look goes back as far.
KEEP_EXTERNAL_DAYS = env.float("CAPATAZ_KEEP_EXTERNAL_DAYS", 365, validate=Range(0.001, 36500))

# Hosts, as host or host:port, that `api_integration` and `webhook` may call although they are not on the
# public internet, or on another port than 80 and 443. Everything else that is private is refused.
OUTBOUND_ALLOWED_HOSTS: list[str] = env.list("CAPATAZ_OUTBOUND_ALLOWED_HOSTS", [], subcast=str.strip)
# Certificates, in PEM, by which those hosts are known, instead of the public ones.
OUTBOUND_CA_FILE: str = env.str("CAPATAZ_OUTBOUND_CA_FILE", "")
# Secrets that payloads name: JSON such as {"crm": {"value": "s3cret", "hosts": ["api.crm.example"]}}. Each is
# sent to its hosts and to nobody else. A value may be a list of keys, the first of which is the newest.
OUTBOUND_SECRETS: Any = env.json("CAPATAZ_OUTBOUND_SECRETS", {}, validate=outbound_secrets)

# --- Exports ------------------------------------------------------------------------------------------

# A TOML file with the queries that `data_export` may run, beside those that code registers: a table for each,
# with `sql`, and if need be `parameters`, `timeout` (seconds) and `stands_for`.
CAPATAZ_QUERIES: Path | None = env.path("CAPATAZ_QUERIES", None)
# The database, and the role, for `sql_export`: admins' own SQL. Without it, none is run.
EXPORT_SQL_URL: str = env.str("CAPATAZ_EXPORT_SQL_URL", "")
# A TrueType font for reports in PDF. Without it, characters beyond Latin-1 are shown as question marks.
REPORT_FONT: Path | None = env.path("CAPATAZ_REPORT_FONT", None)
# Days after which reports are deleted.
KEEP_REPORTS_DAYS = env.float("CAPATAZ_KEEP_REPORTS_DAYS", 30, validate=Range(0.001, 36500))

# --- Django -------------------------------------------------------------------------------------------

DEBUG = False
_allowed_hosts: list[str] = env.list("ALLOWED_HOSTS", ["127.0.0.1", "localhost", "[::1]"])
_trusted_origins: list[str] = env.list("CSRF_TRUSTED_ORIGINS", [])
_secret_key: str = env.str("SECRET_KEY", "")
ENCRYPTION_KEYS: list[str] = env.list("ENCRYPTION_KEYS", [], validate=each(encryption_key))
_email_host: str = env.str("EMAIL_HOST", "127.0.0.1")
_email_port: int = env.int("EMAIL_PORT", 2525, validate=Range(1, 65535))
_email_user: str = env.str("EMAIL_USER", "")
_email_password: str = env.str("EMAIL_PASSWORD", "")
_email_tls: bool = env.bool("EMAIL_USE_TLS", False)
_email_allowed_domains: list[str] = env.list("EMAIL_ALLOWED_DOMAINS", [])
_email_from: str = env.str("DEFAULT_FROM_EMAIL", "capataz@localhost")


def _in_words(error: EnvError) -> str:
    """All faults, each with the name of its variable and what is allowed."""
    faults = getattr(error, "error_messages", None)
    if not isinstance(faults, dict):
        return str(error)
    return "; ".join(f"{_quoted(name)}: {' '.join(said)}" for name, said in faults.items())


def _quoted(name: str) -> str:
    """A variable with its value, unless that is, or may contain, a secret."""
    return (
        name
        if name.endswith(("_TOKEN", "_API_URL", "_KEYS", "_SECRETS"))
        else f"{name}={os.environ.get(name, '')!r}"
    )


try:
    DATABASE_URL: str | None = database_url(env)
    REDIS_URL: str | None = redis_url(env)
    env.seal()
except EnvError as error:
    # Not a traceback: whoever set the value sees what to do about it, whatever process was started.
    raise SystemExit(f"Capataz cannot start: {_in_words(error)}") from None


def _kept_secret(name: str, variable: str, made: Callable[[], str]) -> str:
    """A secret in the data directory, made on first use: what it signs or seals outlives a restart."""
    path = CAPATAZ_DATA_DIR / name
    try:
        return path.read_text().strip()
    except (FileNotFoundError, PermissionError):
        new = path.with_name(f".{name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(made())
            # Under its name it appears whole, and only the fastest of several processes makes it.
            with contextlib.suppress(FileExistsError):
                os.link(new, path)
            new.unlink()
            return path.read_text().strip()
        except OSError as error:
            hint = f"set CAPATAZ_HOME to a directory of your own, or set {variable}"
            raise SystemExit(f"Capataz cannot start: no secret in {path}: {error}; {hint}") from None


SECRET_KEY = _secret_key or _kept_secret("secret-key", "SECRET_KEY", lambda: secrets.token_urlsafe(48))
if not ENCRYPTION_KEYS and APP_ENV != "production":
    ENCRYPTION_KEYS = [_kept_secret("encryption-key", "ENCRYPTION_KEYS", lambda: new_key("first"))]
ALLOWED_HOSTS = _allowed_hosts
CSRF_TRUSTED_ORIGINS = _trusted_origins

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "ninja",
    "servestatic",
    "django.contrib.staticfiles",
    "django_celery_results",
    "django_celery_beat",
    "capataz",
    "tasks",
    "dashboard",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "capataz.urls"
WSGI_APPLICATION = "capataz.wsgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": django_database(DATABASE_URL)}
TASKS = {"default": {"BACKEND": "capataz.django_tasks.CapatazBackend", "QUEUES": _task_queues}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
STATIC_URL = "static/"
STATIC_ROOT = CAPATAZ_DATA_DIR / "static"
SERVESTATIC_USE_FINDERS = True
# A POST to an address without its slash must not become a redirected GET.
APPEND_SLASH = False
LOGIN_URL = "admin:login"
# The bulk call has a cap of its own, 64 MiB.
DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024 * 1024
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"

EMAIL_HOST, EMAIL_PORT = _email_host, _email_port
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD, EMAIL_USE_TLS = _email_user, _email_password, _email_tls
EMAIL_ALLOWED_DOMAINS = _email_allowed_domains
EMAIL_TIMEOUT = 20  # seconds: below every e-mail handler's soft limit
DEFAULT_FROM_EMAIL = _email_from

_level = {"error": "ERROR", "warn": "WARNING", "info": "INFO", "debug": "DEBUG"}[LOG_LEVEL]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    # Handlers' own packages talk as much as the platform does, libraries only of what is wrong.
    "loggers": {name.partition(".")[0]: {"level": _level} for name in ["capataz", *CAPATAZ_HANDLERS]},
}

# --- Celery -------------------------------------------------------------------------------------------

CELERY_BROKER_URL = REDIS_URL or "redis://no-redis-configured.invalid/0"
CELERY_BROKER_TRANSPORT = "capataz.worker.transport:Transport"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": VISIBILITY_TIMEOUT,
    # The stock sweep comes every 100 s; a lost message of a plain task should not wait for it.
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_restore_limit": 500,
    # A sweeper that died would block the others for this many seconds (stock: 300).
    "unacked_mutex_expire": 20,
    "priority_steps": list(REDIS_STEPS),
    "sep": ":",
    "queue_order_strategy": "round_robin",
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    # kombu switches TCP keepalive off unless told otherwise.
    "socket_keepalive": True,
    "health_check_interval": 10,
    "client_name": "capataz",
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CHANNEL_ERROR_RETRY = True  # what Redis refuses is waited out; the stock worker exits
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # the stock worker exits after 100
CELERY_BROKER_POOL_ACQUIRE_TIMEOUT = 5
CELERY_RESULT_BACKEND = "capataz.worker.results:ResultBackend"
CELERY_RESULT_EXTENDED = True
CELERY_TASK_ACKS_LATE = True
# A plain task whose process died runs again. One that kills every process it gets does so until somebody
# revokes it: quarantine is for handlers.
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_TRACK_STARTED = True
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_CREATE_MISSING_QUEUES = False  # a typo is an error, not a black hole
# Unset would be kombu's most urgent step.
CELERY_TASK_DEFAULT_PRIORITY = 10 - DEFAULT_PRIORITY
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = CELERY_EVENT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_PROC_ALIVE_TIMEOUT = 30  # the stock 4 s kill a child that starts on a busy machine
CELERY_WORKER_AUTOSCALER = "capataz.worker.autoscaler:Autoscaler"
CELERY_WORKER_CONSUMER = "capataz.worker.consumer:Consumer"
CELERY_WORKER_POOL = "capataz.worker.pool:TaskPool"
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_WORKER_ENABLE_PREFETCH_COUNT_REDUCTION = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_ENABLE_UTC, CELERY_TIMEZONE = True, "UTC"
CELERY_BEAT_SCHEDULER = "capataz.beat:Scheduler"
CELERY_BEAT_SYNC_EVERY = 1
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
# Celery closes the connection after every task unless told how often it may be used.
CELERY_DB_REUSE_MAX = 1_000_000_000
DJANGO_CELERY_BEAT_TZ_AWARE = True
