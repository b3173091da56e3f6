"""System checks: what must be true of an installation before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError

from capataz import discovery, handlers


@register()
def servers_are_configured(**_: Any) -> list[CheckMessage]:
    """Commands other than ``up`` need to know where PostgreSQL and Redis are."""
    hint = (
        "start the platform with `manage.py up`, set CAPATAZ_HOME to its data directory, "
        "or set DATABASE_URL and REDIS_URL"
    )
    missing = [name for name in ("DATABASE_URL", "REDIS_URL") if not getattr(settings, name)]
    return [Warning(f"no {name} is configured", hint=hint, id="capataz.W001") for name in missing]


@register()
def slack_has_a_token(**_: Any) -> list[CheckMessage]:
    """Slack answers nobody without one."""
    if settings.EXTERNAL_SLACK_CHANNELS and not settings.SLACK_TOKEN:
        hint = "set SLACK_TOKEN, or leave EXTERNAL_SLACK_CHANNELS empty"
        return [Error("EXTERNAL_SLACK_CHANNELS needs SLACK_TOKEN", hint=hint, id="capataz.E003")]
    return []


@register()
def sensitive_values_have_a_key(**_: Any) -> list[CheckMessage]:
    """Nothing that a handler calls sensitive may have to be refused when somebody submits it."""
    named = [handler.name for handler in handlers.registered() if handler.sensitive]
    if named and not settings.ENCRYPTION_KEYS:
        hint = "set ENCRYPTION_KEYS; `manage.py encryption_key` makes a key"
        what = f"{', '.join(named)} declare sensitive values, and there is no encryption key"
        return [Error(what, hint=hint, id="capataz.E004")]
    return []


@register()
def beats_fit_into_the_timeout(**_: Any) -> list[CheckMessage]:
    """A worker must be able to miss beats without being robbed."""
    if settings.HEARTBEAT * 2 > settings.LOOKS_WITH_FREE_LOCK:  # the looks are a second apart
        return [
            Error(
                "CAPATAZ_HEARTBEAT_SECONDS must fit twice into CAPATAZ_LOOKS_WITH_FREE_LOCK seconds",
                hint="the defaults are 1 and 3",
                id="capataz.E002",
            )
        ]
    if settings.LOOKS_WITH_FREE_LOCK >= settings.LOOKS_WITHOUT_BEAT:
        return [
            Error(
                "CAPATAZ_LOOKS_WITH_FREE_LOCK must be below CAPATAZ_LOOKS_WITHOUT_BEAT",
                hint="the defaults are 3 and 15",
                id="capataz.E001",
            )
        ]
    return []


@register()
def handlers_can_be_imported(**_: Any) -> list[CheckMessage]:
    """Whatever else starts refuses to, with the same words."""
    hint = "mend the module, or take it out of CAPATAZ_HANDLERS"
    return [Error(fault, hint=hint, id="capataz.E010") for fault in discovery.faults]


# What Celery has to be told, and what goes wrong otherwise.
_OURS = {
    "CELERY_BROKER_TRANSPORT": "pointers would be acknowledged in Redis and lost with it",
    "CELERY_RESULT_BACKEND": "AsyncResult would know nothing of handlers' tasks",
    "CELERY_WORKER_AUTOSCALER": "workers would not follow what waits in PostgreSQL",
    "CELERY_WORKER_CONSUMER": "a message that cannot be taken would end the worker",
    "CELERY_WORKER_POOL": "handlers could not run",
    "CELERY_BEAT_SCHEDULER": "each beat would submit every due time again",
}
_SAFE: dict[str, tuple[Any, str]] = {
    "CELERY_TASK_ACKS_LATE": (True, "a plain task would be lost with its worker"),
    "CELERY_TASK_REJECT_ON_WORKER_LOST": (True, "a plain task would be lost with its process"),
    "CELERY_TASK_CREATE_MISSING_QUEUES": (
        False,
        "what is sent to a misspelt queue would wait there for ever",
    ),
    "CELERY_TASK_ALWAYS_EAGER": (False, "no task would be a row: it would run where it is submitted"),
}


@register()
def celery_keeps_the_guarantees(**_: Any) -> list[CheckMessage]:
    """Settings of one's own may replace what the guarantees rest on."""
    messages: list[CheckMessage] = []
    for name, harm in _OURS.items():
        given = getattr(settings, name, None)
        if not str(given).startswith("capataz."):
            hint = f"leave {name} as capataz.settings has it, or name a subclass in a module of capataz"
            messages.append(Error(f"{name} is {given!r}: {harm}", hint=hint, id="capataz.E011"))
    for name, (safe, harm) in _SAFE.items():
        if getattr(settings, name, safe) != safe:
            messages.append(
                Warning(f"{name} is {not safe}: {harm}", hint=f"set it to {safe}", id="capataz.W011")
            )
    if set(getattr(settings, "CELERY_ACCEPT_CONTENT", [])) - {"json", "application/json"}:
        hint = 'set it to ["json"]'
        text = "CELERY_ACCEPT_CONTENT allows more than JSON: whoever can write to Redis could run any code"
        messages.append(Error(text, hint=hint, id="capataz.E012"))
    return messages


@register(Tags.database)
@register()
def schedules_can_be_followed(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Schedules that beat would refuse whenever they are due. Only `check` reads the database for it."""
    if not databases and not discovery.finds_faults_itself():
        return []
    try:
        return list(_faults_of_schedules())
    except DatabaseError:
        return []  # not there, or not migrated yet


def _faults_of_schedules() -> Iterator[CheckMessage]:
    from celery import current_app
    from django_celery_beat.models import PeriodicTask

    from capataz import handlers
    from capataz.lifecycle.submission import known_queues

    for rule in PeriodicTask.objects.filter(enabled=True).order_by("name"):
        if not handlers.is_registered(rule.task) and rule.task not in current_app.tasks:
            hint = "mend its task in the admin, disable it, or name the handler's module in CAPATAZ_HANDLERS"
            text = f"the schedule {rule.name!r} submits {rule.task!r}, and there is no such type"
            yield Error(text, hint=hint, id="capataz.E013")
        if rule.queue and rule.queue not in known_queues():
            hint = f"known queues: {', '.join(sorted(known_queues()))}"
            text = f"the schedule {rule.name!r} names the unknown queue {rule.queue!r}"
            yield Error(text, hint=hint, id="capataz.E014")
