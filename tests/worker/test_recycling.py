"""Children are replaced at their limits between two tasks, also within a bundle."""

from collections import Counter

import pytest
from django.test import Client

from capataz.lifecycle.submission import Submission, submit_many
from capataz.models import Role, Task, Token
from capataz.worker.child import Wear


def submit_pids(count, **payload):
    return submit_many(Submission(type="testing.pid", data=payload) for _ in range(count))


def pids(ids):
    return Task.objects.filter(pk__in=ids).values_list("result", flat=True)


@pytest.fixture
def all_done(eventually):
    return lambda ids: eventually(
        lambda: Task.objects.filter(pk__in=ids, state="succeeded").count() == len(ids)
    )


def test_a_child_runs_as_many_tasks_as_it_may_and_no_more(platform, all_done):
    platform.start_dispatcher()
    platform.start_worker("1,1", options=("--max-tasks-per-child=7",))
    ids = submit_pids(60)
    all_done(ids)
    by_child = Counter(pids(ids))
    assert set(by_child.values()) == {7, 60 % 7}


def test_a_child_that_has_grown_too_large_leaves_the_rest_of_its_bundle_to_others(platform, all_done):
    platform.start_dispatcher()
    platform.start_worker("1,1", options=("--max-memory-per-child=400000",))
    all_done(submit_pids(30))  # by now everybody knows how short these tasks are, and bundles are large
    ids = submit_pids(4, megabytes=400)
    all_done(ids)
    assert len(set(pids(ids))) == 4


def test_the_memory_of_a_worker_and_its_children_is_shown(platform, eventually):
    platform.start_dispatcher()
    worker = platform.start_worker("1,1")
    before = eventually(lambda: worker.worker().ram_mb)
    submit_pids(1, megabytes=300)
    eventually(lambda: worker.worker().ram_mb > before + 250)
    _, secret = Token.issue(name="viewer", role=Role.VIEWER)
    answer = Client().get("/api/v1/workers", headers={"Authorization": f"Bearer {secret}"})
    [shown] = answer.json()
    assert shown["ramMb"] > before + 250


def test_a_limit_below_what_every_child_needs_lets_each_run_one_task():
    wear = Wear(most_memory=1)
    assert not wear.is_worn_out()
    wear.tasks = 1
    assert wear.is_worn_out()


def test_without_limits_a_child_stays():
    wear = Wear(tasks=10**9)
    assert not wear.is_worn_out()
