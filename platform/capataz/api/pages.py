"""Pages of tasks: newest first, continued from the last id, within a budget of time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from django.db import connection, transaction
from django.http import HttpRequest

from capataz.models import Task
from capataz.models.task import TaskQuerySet

# A filter that few tasks pass can make PostgreSQL read a long history; nobody waits longer than this.
MOST_SECONDS = 5


@dataclass(frozen=True)
class Page:
    """Some tasks, and the id from which the next page continues, if there is one."""

    tasks: list[Task]
    next_cursor: UUID | None

    def links(self, request: HttpRequest) -> dict[str, str]:
        """The Link header that leads to the next page."""
        if self.next_cursor is None:
            return {}
        query = request.GET.copy()
        query["cursor"] = str(self.next_cursor)
        return {"Link": f'<{request.path}?{query.urlencode()}>; rel="next"'}


def page_of(tasks: TaskQuerySet, *, limit: int, after: UUID | None) -> Page:
    """The newest ``limit`` of these tasks, or of those older than ``after``."""
    if after is not None:
        tasks = tasks.filter(pk__lt=after)
    with _in_time():
        found = list(tasks.order_by("-pk")[: limit + 1])
    more = len(found) > limit
    return Page(found[:limit], found[limit - 1].pk if more else None)


@contextmanager
def _in_time() -> Iterator[None]:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = '{MOST_SECONDS}s'")
        yield
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = DEFAULT")
