"""What a chaos run can be pointed at: Capataz, or plain Celery with django-celery-results."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from capataz.home import REPOSITORY
from capataz.services.keepsakes import free_port
from ops.chaos.checker import FINAL, Findings, Row
from ops.chaos.target import Target
from ops.chaos.workload import Asked, Door, Python, Rest


class Engine(ABC):
    """One task system under test."""

    name: str
    has_host = False  # a worker on a host of its own, which some faults need

    @abstractmethod
    def command(self, place: Path, workers: int, concurrency: str) -> list[str]:
        """What starts the platform in the directory ``place``."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What the platform's processes need to know, beside ours."""

    @abstractmethod
    def prepare(self, target: Target) -> None:
        """Make this process able to submit."""

    @abstractmethod
    def doors(self) -> dict[str, Door]:
        """Ways to submit, by the name of the submitter that uses each."""

    @abstractmethod
    def rows(self, target: Target, prefix: str) -> list[Row]:
        """The tasks whose keys begin so, as the database has them now."""

    @abstractmethod
    def ask_everybody(self, findings: Findings, asked: list[Asked]) -> None:
        """Ask for every accepted id by the door that a client would use."""

    def has_ended(self, target: Target, prefix: str, asked: list[Asked]) -> bool:
        """Whether every accepted task has ended."""
        ended = {row.key for row in self.rows(target, prefix) if row.state in FINAL}
        return all(each.key in ended for each in asked if each.told == "accepted")


class Capataz(Engine):
    """``manage.py up``, with handlers that keep a record."""

    name = "Capataz"
    has_host = True

    def command(self, place: Path, workers: int, concurrency: str) -> list[str]:
        """The whole platform."""
        return [
            sys.executable, str(REPOSITORY / "manage.py"), "up", "--data-dir", str(place),
            "--port", str(free_port()), "--workers", str(workers), "--concurrency", concurrency,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Our handlers."""
        return {
            "CAPATAZ_HANDLERS": "tasks,ops.chaos.handlers",
            "CAPATAZ_DEMO": "1",
            "APP_ENV": "development",
        }

    def prepare(self, target: Target) -> None:
        """One of the submitters calls ``submit_many`` in this process, with the platform's settings."""
        run = target.run()
        os.environ.update(
            self.environment(),
            CAPATAZ_HOME=str(target.home),
            DATABASE_URL=run.database_url,
            REDIS_URL=run.redis_url,
            DJANGO_SETTINGS_MODULE="capataz.settings",
        )
        import django

        django.setup()
        self._target, self._token = target, target.token()

    def doors(self) -> dict[str, Door]:
        """Two over HTTP and one in Python."""
        return {"http1": self._rest(), "http2": self._rest(), "python": Python()}

    def rows(self, target: Target, prefix: str) -> list[Row]:
        """With their attempts."""
        query = """
        SELECT task.id::text, task.key, task.state,
               array(SELECT outcome FROM capataz_attempt WHERE task_id = task.id ORDER BY id)
          FROM capataz_task AS task WHERE task.key LIKE %s
        """
        with target.database() as session:
            rows = session.execute(query, [f"{prefix}%"]).fetchall()
        return [Row(task_id, key, state, tuple(outcomes)) for task_id, key, state, outcomes in rows]

    def has_ended(self, target: Target, prefix: str, asked: list[Asked]) -> bool:
        """Also what nobody was told of."""
        return all(row.state in FINAL for row in self.rows(target, prefix))

    def ask_everybody(self, findings: Findings, asked: list[Asked]) -> None:
        """Every accepted id has to answer over HTTP, with a final status."""
        api = self._rest()
        for each in asked:
            if each.told != "accepted":
                continue
            try:
                status = api.read(each.key)["status"]
            except Exception as error:
                findings.forgotten_by_api.append(f"{each.key}: {error}"[:200])
                continue
            if status in ("pending", "inProgress"):
                findings.forgotten_by_api.append(f"{each.key}: {status}")

    def _rest(self) -> Rest:
        return Rest(lambda: self._target.run().web, self._token)


class PlainCelery(Engine):
    """Celery with ``acks_late`` and django-celery-results, by its defaults or tuned."""

    _states = {"SUCCESS": "succeeded", "FAILURE": "dead", "REVOKED": "cancelled"}

    def __init__(self, *, tuned: bool) -> None:
        self._tuned = tuned
        self.name = "Celery, tuned" if tuned else "Celery, acks_late"

    def command(self, place: Path, workers: int, concurrency: str) -> list[str]:
        """Its workers under a supervisor, with the same servers."""
        return [
            sys.executable, "-m", "ops.chaos.peer_platform", str(place), str(workers),
            ",".join(reversed(concurrency.split(","))),
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Which of the two."""
        return {"CHAOS_TUNED": "1" if self._tuned else "0"}

    def prepare(self, target: Target) -> None:
        """The app reads its broker as it is imported, and its results' table is Django's."""
        run = target.run()
        os.environ.update(
            self.environment(),
            REDIS_URL=run.redis_url,
            DATABASE_URL=run.database_url,
            DJANGO_SETTINGS_MODULE="ops.bench.peer_settings",
        )
        import django

        django.setup()

    def doors(self) -> dict[str, Door]:
        """The same number."""
        from ops.chaos.peer import Peer

        return {"one": Peer(), "two": Peer(), "three": Peer()}

    def rows(self, target: Target, prefix: str) -> list[Row]:
        """What the results' table has: one row for each task, whatever happened to it."""
        query = "SELECT task_id, status FROM django_celery_results_taskresult WHERE task_id LIKE %s"
        with target.database() as session:
            rows = session.execute(query, [f"{prefix}%"]).fetchall()
        return [
            Row(task_id, task_id, self._states.get(status, status.lower()), self._outcomes(status))
            for task_id, status in rows
        ]

    def ask_everybody(self, findings: Findings, asked: list[Asked]) -> None:
        """Its results' table is all that there is to ask."""

    def _outcomes(self, status: str) -> tuple[str, ...]:
        return ("succeeded",) if status == "SUCCESS" else ()


ENGINES = {
    "capataz": Capataz,
    "celery": lambda: PlainCelery(tuned=False),
    "celery-tuned": lambda: PlainCelery(tuned=True),
}
