"""Keep copies of GitHub issues and Slack messages, every quarter of an hour, once they are configured."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings

from capataz.handlers import RunningTask, handler
from capataz.policy import fixed
from tasks.upkeep import Nothing
from tasks.web import ComeBackLater, SourceFailed

_log = logging.getLogger(__name__)

NOTHING = "nothing is configured: see EXTERNAL_GITHUB_REPOSITORIES and EXTERNAL_SLACK_CHANNELS"


@handler(
    "external_sync",
    payload=Nothing,
    queue="maintenance",
    retry=fixed(60, attempts=3),
    soft_time_limit=780,
    time_limit=840,
)
def sync(task: RunningTask, nothing: Nothing) -> dict[str, Any]:
    """Read what has changed in every source that is configured; returns how much, for each.

    Each page is stored in the transaction that moves the source's cursor, so that whoever is killed repeats
    a page at most. A source that fails does not stop the others; in the end it fails the attempt. Items
    older than CAPATAZ_KEEP_EXTERNAL_DAYS are deleted.
    """
    # Imported here: handlers are registered before Django has loaded the models.
    from tasks.models import prune

    deleted = prune(settings.KEEP_EXTERNAL_DAYS)
    names = _configured()
    if not names:
        return {"skipped": NOTHING, "deleted": deleted}
    sources: dict[str, Any] = {}
    for done, name in enumerate(_longest_ago_first(names)):
        task.progress(100 * done // len(names), name)
        sources[name] = _look(name)
    failed = [f"{name}: {found['failed']}" for name, found in sources.items() if "failed" in found]
    if failed:
        raise SourceFailed(f"{len(failed)} of {len(names)} sources failed: {'; '.join(failed)}")
    task.progress(100, "done")
    return {"sources": sources, "deleted": deleted}


def _configured() -> list[str]:
    repositories = [f"github:{name}" for name in settings.EXTERNAL_GITHUB_REPOSITORIES]
    channels = [f"slack:{name}" for name in settings.EXTERNAL_SLACK_CHANNELS]
    return list(dict.fromkeys(repositories + channels))


def _longest_ago_first(names: list[str]) -> list[str]:
    """So that a source at which the time runs out does not keep the others from their turn for ever."""
    from tasks.models import ExternalSource

    looked = dict(ExternalSource.objects.filter(name__in=names).values_list("name", "looked_at"))
    return sorted(names, key=lambda name: looked.get(name) or datetime.min.replace(tzinfo=UTC))


def _look(name: str) -> dict[str, Any]:
    """Read one source; tells what came of it. Only a failure of PostgreSQL is raised."""
    from django.db import DataError
    from django.db.models.functions import Now

    from tasks import github, slack
    from tasks.models import ExternalSource, Overtaken

    service = github if name.startswith(github.PREFIX) else slack
    # What is older would be deleted at once.
    start = datetime.now(UTC) - timedelta(days=settings.KEEP_EXTERNAL_DAYS)
    source = ExternalSource.objects.begin(name, service.cursor_at(start))
    if source is None:
        return {"waiting": "the service asked to be left alone"}
    try:
        try:
            found: dict[str, Any] = service.read(source)
            source.move(error="", not_before=None)
        except ComeBackLater as later:
            source.move(error="", not_before=Now() + later.wait)
            found = {"waiting": str(later)}
        except (SourceFailed, DataError) as error:
            reason = str(error) if isinstance(error, SourceFailed) else "answered with what cannot be stored"
            _log.warning("%s %s", name, reason)
            source.move(error=reason)
            found = {"failed": reason}
    except Overtaken:
        found = {"overtaken": "another run reads it"}
    return found
