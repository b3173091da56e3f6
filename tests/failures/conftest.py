"""What the failure tests share: records that handlers write, and servers that can be killed."""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections

from capataz.lifecycle.submission import Submission, submit_many
from capataz.models import Attempt, Task
from tests import embedded_servers


@dataclass
class Records:
    """What ``demo.record`` wrote, as an independent witness of what ran."""

    file: str = field(default_factory=lambda: f"{uuid.uuid4().hex}.log")
    ids: list[uuid.UUID] = field(default_factory=list)

    def submit(self, count: int, *, seconds: float = 0.0, **options: Any) -> list[uuid.UUID]:
        """Submit so many recording tasks."""
        tasks = (
            Submission(
                type="demo.record",
                data={"file": self.file, "token": f"{len(self.ids) + number}", "seconds": seconds},
                **options,
            )
            for number in range(count)
        )
        ids = submit_many(tasks)
        self.ids += ids
        return ids

    def lines(self) -> list[list[str]]:
        """[start|end, task id, attempt, token] in the order written."""
        path = Path(settings.CAPATAZ_DATA_DIR) / "records" / self.file
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def started(self, task_id: uuid.UUID) -> int:
        return sum(1 for word, about, *_ in self.lines() if word == "start" and about == str(task_id))

    def all_succeeded(self) -> bool:
        return Task.objects.filter(pk__in=self.ids, state="succeeded").count() == len(self.ids)

    def check(self) -> None:
        """Every task succeeded, finished exactly once, and ran completely at least once."""
        states = Counter(Task.objects.filter(pk__in=self.ids).values_list("state", flat=True))
        assert states == {"succeeded": len(self.ids)}
        finishings = Counter(
            Attempt.objects.filter(task_id__in=self.ids, outcome="succeeded").values_list("task_id", flat=True)
        )
        assert set(finishings.values()) == {1}
        assert len(finishings) == len(self.ids)
        ended = {about for word, about, *_ in self.lines() if word == "end"}
        assert ended >= {str(task_id) for task_id in self.ids}


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def servers() -> Any:
    """The servers of this run; whatever a test stops is running again afterwards."""
    held = embedded_servers.servers()
    yield held
    for server in held.own():
        if server.child is None:
            server.start()
            server.wait_until_ready()
    for connection in connections.all():
        connection.close()


@pytest.fixture
def restart_postgres(servers: Any) -> Callable[[], None]:
    def restart() -> None:
        servers.postgres.kill()
        servers.postgres.start()
        servers.postgres.wait_until_ready()
        for connection in connections.all():
            connection.close()

    return restart


@pytest.fixture
def restart_redis(servers: Any) -> Callable[[], None]:
    def restart() -> None:
        servers.redis.kill()
        servers.redis.start()
        servers.redis.wait_until_ready()

    return restart
