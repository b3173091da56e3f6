"""The workload: several submitters, each of which writes down what it was told."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, get_args
from urllib.parse import quote

import httpx

from ops.chaos.misbehaviours import Misbehaviour

GIVE_UP_AFTER = 90.0  # seconds of asking the same thing again
SUCCEEDED, CANCELLED, DEAD = "succeeded", "cancelled", "dead"
WEIGHTS = {
    "short": 40, "long": 8, "failing": 5, "retrying": 10, "scheduled": 10, "cancelled": 8, "unique": 6,
    "dependent": 6, "bulk": 3, "misbehaving": 8,
}  # fmt: skip


@dataclass
class Asked:
    """One task that a submitter asked for. ``told`` is accepted, refused, or unknown: nobody answered.

    ``ends`` are the states in which it may end; ``at`` is CLOCK_MONOTONIC when the answer came.
    """

    key: str
    kind: str
    task: dict[str, Any]
    ends: list[str]
    told: str = "unknown"
    at: float = 0.0
    trouble: str = ""  # why the last try got no answer
    follows: str | None = None  # the key of the task that its handler submits
    ids: list[str] = field(default_factory=list)  # that were answered: never more than one


class Door(Protocol):
    """A way to submit tasks. Raises Refused for a definite no, and anything else if nothing is known."""

    def submit(self, tasks: list[dict[str, Any]]) -> list[str]:
        """Submit all of these or none; returns their ids."""

    def cancel(self, key: str) -> None:
        """Cancel one."""


class Refused(Exception):
    """The platform has said no."""


class Rest:
    """The HTTP API, as any client uses it."""

    def __init__(self, web: Callable[[], str], token: str) -> None:
        self._web = web
        self._client = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=20, trust_env=False)

    def submit(self, tasks: list[dict[str, Any]]) -> list[str]:
        """One POST."""
        if len(tasks) == 1:
            return [self._call("POST", "/tasks", tasks[0])["id"]]
        return list(self._call("POST", "/tasks/bulk", {"tasks": tasks})["ids"])

    def cancel(self, key: str) -> None:
        """Cancel one."""
        self._call("POST", f"/tasks/{quote(key)}/cancel", {"reason": "chaos"})

    def read(self, key: str) -> dict[str, Any]:
        """A task as the API shows it."""
        return dict(self._call("GET", f"/tasks/{quote(key)}"))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._client.request(method, f"{self._web()}/api/v1{path}", json=body)
        if answer.status_code >= 500:
            answer.raise_for_status()
        if answer.status_code >= 400:
            raise Refused(f"{answer.status_code}: {answer.text[:300]}")
        return answer.json()


class Python:
    """``submit_many`` in a process beside the platform, in a transaction of its own."""

    def submit(self, tasks: list[dict[str, Any]]) -> list[str]:
        """One transaction."""
        from django.db import connection

        from capataz.api.schemas import TaskIn
        from capataz.errors import InvalidSubmission
        from capataz.lifecycle.submission import submit_many

        try:
            ids = submit_many(TaskIn.model_validate(task).submission("chaos") for task in tasks)
        except InvalidSubmission as error:
            raise Refused(str(error)) from None
        except Exception:
            connection.close()
            raise
        return [str(task_id) for task_id in ids]

    def cancel(self, key: str) -> None:
        """As a person's own code would."""
        from django.db import connection

        from capataz.errors import IllegalMove
        from capataz.lifecycle.cancellation import cancel
        from capataz.models import Task

        try:
            cancel(Task.objects.called(key).get(), by="chaos")
        except IllegalMove as error:
            raise Refused(str(error)) from None
        except Exception:
            connection.close()
            raise


class Submitter(threading.Thread):
    """Asks for one task after another until stopped, and asks again for what nobody answered."""

    def __init__(self, name: str, door: Door, *, seed: str, rate: float, journal: Path) -> None:
        super().__init__(name=name, daemon=True)
        self.asked: list[Asked] = []
        self._door = door
        self._random = random.Random(seed)
        self._rate = rate  # tasks a second
        self._journal = journal
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ask for nothing more."""
        self._stopping.set()

    def run(self) -> None:
        """Ask until stopped."""
        with self._journal.open("a") as journal:
            while not self._stopping.is_set():
                batch = self._invent()
                self._ask(batch)
                for asked in batch:
                    journal.write(json.dumps(asdict(asked)) + "\n")
                journal.flush()
                self._stopping.wait(self._random.expovariate(self._rate / len(batch)))

    def _invent(self) -> list[Asked]:
        kind = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        count = 30 if kind == "bulk" else 1
        return [self._invent_one(kind) for _ in range(count)]

    def _invent_one(self, kind: str) -> Asked:
        key = f"{self.name}-{len(self.asked)}"
        rng = self._random
        data: dict[str, Any] = {"seconds": round(rng.uniform(0, 0.05), 3)}
        task: dict[str, Any] = {"type": "chaos.work", "id": key, "data": data}
        asked = Asked(key, kind, task, [SUCCEEDED])
        match kind:
            case "long":
                data["seconds"] = round(rng.uniform(4, 12), 1)
            case "failing":
                data["fails"], task["maxAttempts"] = 1000, rng.randint(1, 3)
                asked.ends = [DEAD]
            case "retrying":
                data["fails"] = rng.randint(1, 3)
            case "scheduled":
                due = datetime.now(UTC) + timedelta(seconds=rng.uniform(1, 15))
                task["runAt"] = due.isoformat()
            case "cancelled":
                data["seconds"] = round(rng.uniform(0, 6), 1)
                asked.ends = [CANCELLED, SUCCEEDED]
            case "dependent":
                asked.follows = data["follow"] = f"{key}-next"
            case "misbehaving":
                task["type"], task["data"] = "chaos.misbehave", {"how": rng.choice(get_args(Misbehaviour))}
        task["priority"] = rng.randint(0, 10)
        self.asked.append(asked)
        return asked

    def _ask(self, batch: list[Asked]) -> None:
        tasks = [asked.task for asked in batch]
        times = 3 if batch[0].kind == "unique" else 1
        for _ in range(times):
            self._note(batch, lambda: self._door.submit(tasks))
        if batch[0].kind == "cancelled":
            self._stopping.wait(self._random.uniform(0, 3))
            for _ in self._tries():
                try:
                    self._door.cancel(batch[0].key)
                    return
                except Refused:
                    return
                except Exception:
                    time.sleep(0.5)

    def _note(self, batch: list[Asked], submit: Callable[[], list[str]]) -> None:
        for _ in self._tries():
            try:
                ids = submit()
            except Refused as error:
                for asked in batch:
                    asked.told = f"refused: {error}"
                return
            except Exception as error:  # whether it was accepted is open: with its id it can be asked again
                for asked in batch:
                    asked.trouble = repr(error)[:300]
                time.sleep(0.5)
                continue
            for asked, answered in zip(batch, ids, strict=True):
                asked.told, asked.at = "accepted", time.monotonic()
                if answered not in asked.ids:
                    asked.ids.append(answered)
            return

    def _tries(self) -> Iterator[None]:
        deadline = time.monotonic() + GIVE_UP_AFTER
        while time.monotonic() < deadline:
            yield


def submitters(doors: dict[str, Door], *, seed: int, rate: float, folder: Path) -> list[Submitter]:
    """One for each door; together they ask for ``rate`` tasks a second."""
    run = f"chaos-{os.getpid()}-{seed}"
    return [
        Submitter(
            f"{run}-{name}",
            door,
            seed=f"{seed} {name}",
            rate=rate / len(doors),
            journal=folder / f"{name}.jsonl",
        )
        for name, door in doors.items()
    ]
