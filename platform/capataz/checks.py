"""System checks: what must be true of an installation before it starts."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from capataz import handlers


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
