"""Actors for the tests of the stages: workers that exist in the database only, and doings at once."""

import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import redis
from django.db import connections
from django.db.models.functions import Now

from capataz import handlers, pointer
from capataz.database import Session
from capataz.lifecycle import execution, presence
from capataz.lifecycle.execution import Finish, Grant
from capataz.lifecycle.submission import Submission, known_queues, submit_many
from capataz.models import Event, Outcome, Task, Worker
from capataz.priority import REDIS_STEPS
from capataz.states import State

_tokens = itertools.count(1)


class StagedWorker:
    """A worker as the database sees it: registered, with its lock held, doing what it is told to."""

    def __init__(
        self, *, slots: int = 2, queues: list[str] | None = None, types: list[str] | None = None
    ) -> None:
        self.session = Session("staged worker")
        self._numbers = itertools.count(1)
        self.id = presence.register(
            self.session.connection(),
            name=f"staged-{next(_tokens)}",
            host="stage",
            pid=0,
            queues=sorted(known_queues()) if queues is None else queues,
            types=[known.name for known in handlers.registered()] if types is None else types,
            max_concurrency=slots,
        )

    @property
    def connection(self) -> Any:
        return self.session.connection()

    def row(self) -> Worker:
        return Worker.objects.get(pk=self.id)

    def new_run(self) -> int:
        return (self.id << 32) | next(self._numbers)

    def claim(self, *tasks: Task) -> list[Grant]:
        return execution.claim(self.connection, self.id, [(task.pk, self.new_run()) for task in tasks])

    def hold(self, *tasks: Task) -> list[Grant]:
        """Release these tasks and claim them."""
        release(*tasks)
        grants = {grant.id: grant for grant in self.claim(*tasks)}
        return [grants[task.pk] for task in tasks]

    def run(self, *tasks: Task, ago: float = 1.0) -> list[Grant]:
        """Release, claim and start these tasks."""
        grants = self.hold(*tasks)
        execution.mark_running(self.connection, [(grant.id, grant.run, ago) for grant in grants])
        return grants

    def end(
        self,
        grants: Iterable[Grant],
        state: State = State.SUCCEEDED,
        outcome: Outcome = Outcome.SUCCEEDED,
        **about: Any,
    ) -> set[uuid.UUID]:
        about = {"started_ago": 1.0, **about}
        finishes = [Finish(grant.id, grant.run, state, outcome, **about) for grant in grants]
        return execution.finish(self.connection, finishes)

    def beat(self, **sign: Any) -> bool:
        return presence.beat(self.connection, self.id, presence.Sign(**sign))

    def die(self) -> None:
        """Its sessions end, as the kernel ends those of a killed process."""
        self.session.close()


def tasks(count: int, task_type: str = "demo.echo", data: Any = None, **options: Any) -> list[Task]:
    """So many new tasks, oldest first."""
    ids = submit_many(Submission(type=task_type, data=data, **options) for _ in range(count))
    return sorted(Task.objects.filter(pk__in=ids), key=lambda task: ids.index(task.pk))


def release(*released: Task) -> None:
    """As the dispatcher does, for these tasks only."""
    waiting = Task.objects.filter(pk__in=[task.pk for task in released], released_at__isnull=True)
    waiting.update(released_at=Now(), verify_at=Now(), publishes=1)


def now(task: Task) -> Task:
    """The task as its row is at this moment."""
    return Task.objects.get(pk=task.pk)


def states(all_tasks: Iterable[Task]) -> list[str]:
    return [now(task).state for task in all_tasks]


def kinds(task: Task) -> list[str]:
    """The kinds of the events about this task, oldest first."""
    return list(Event.objects.filter(task_id=task.pk).order_by("id").values_list("kind", flat=True))


def announced(broker: redis.Redis, queue: str = "default") -> list[list[uuid.UUID]]:
    """The messages that Redis holds for a queue, each as its ids, in the order in which workers read them."""
    lists = [pointer.queue_key(queue, step) for step in REDIS_STEPS]
    entries = [entry for name in lists for entry in reversed(broker.lrange(name, 0, -1))]
    return [pointer.decode(json.loads(entry)["headers"]) for entry in entries]


def announced_ids(broker: redis.Redis, queue: str = "default") -> list[uuid.UUID]:
    return [task_id for message in announced(broker, queue) for task_id in message]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of these calls, made at the same moment by a thread each."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)
    faults: list[BaseException] = []

    def make(index: int) -> None:
        barrier.wait()
        try:
            results[index] = calls[index]()
        except BaseException as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=make, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return results
