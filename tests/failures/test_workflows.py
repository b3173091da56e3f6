"""Workflows while their workers and dispatchers are killed."""

import random
from typing import Any

from capataz.lifecycle.workflows import Workflow
from capataz.models import Attempt, Dependency, Task
from capataz.models import Workflow as Row


def test_a_large_dag_comes_to_its_end_in_order_while_workers_and_the_dispatcher_are_killed(
    platform, records, eventually
):
    dispatcher = platform.start_dispatcher()
    chance = random.Random(4)
    workers = [platform.start_worker("4,4"), platform.start_worker("4,4")]
    with Workflow("dag") as flow:
        nodes: list = []
        for number in range(300):
            parents = chance.sample(nodes[-60:], min(len(nodes), chance.randrange(4)))
            data = {"file": records.file, "token": str(number)}
            nodes.append(flow.add("demo.record", data, after=parents))
    records.ids = [node.id for node in nodes]
    row = Row.objects.get(pk=flow.id)

    def ended(share: float):
        row.refresh_from_db()
        return row.succeeded >= share * row.total

    for share in (0.2, 0.5):
        eventually(lambda share=share: ended(share))
        workers.pop(0).kill()
        dispatcher.kill()
        dispatcher = platform.start_dispatcher()
        workers.append(platform.start_worker("4,4"))
    eventually(lambda: ended(1))
    eventually(lambda: Row.objects.get(pk=flow.id).state == "succeeded")
    records.check()
    _check_order(records)


def _check_order(records):
    """No child has started before each of its parents had succeeded."""
    edges = list(Dependency.objects.filter(child_id__in=records.ids).values_list("parent_id", "child_id"))
    assert len(edges) > 200
    finished: Any = dict(Task.objects.filter(pk__in=records.ids).values_list("pk", "finished_at"))
    first: Any = {}
    attempts = Attempt.objects.filter(task_id__in=records.ids).order_by("-started_at")
    for task_id, started in attempts.values_list("task_id", "started_at"):
        first[task_id] = started
    first_line: Any = {}
    for number, (word, about, *_) in enumerate(records.lines()):
        first_line.setdefault((word, about), number)
    for parent, child in edges:
        assert first[child] >= finished[parent]
        assert first_line["start", str(child)] > first_line["end", str(parent)]
