"""Tasks with a retention of their own go by it, and no others; of what is gone, something is still known."""

import gzip
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from capataz.lifecycle import pruned, retention
from capataz.lifecycle.retention import prune
from capataz.lifecycle.submission import submit
from capataz.models import Pruned, Task
from capataz.states import State
from capataz.uniqueness import Throttle
from tests.lifecycle.stage import StagedWorker, tasks

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


def ended(
    count: int, state: State = State.SUCCEEDED, *, ago: timedelta = 9 * SECOND, **options: Any
) -> list[Task]:
    """So many tasks, each of which ended a second after the one before; the newest so long ago."""
    made = tasks(count, **options)
    for place, task in enumerate(reversed(made)):
        Task.objects.filter(pk=task.pk).update(state=state, finished_at=Now() - ago - place * SECOND)
    return made


def left() -> list[Any]:
    return list(Task.objects.order_by("finished_at").values_list("pk", flat=True))


def ids(made: list[Task]) -> list[Any]:
    return [task.pk for task in made]


def test_true_lets_a_task_go_at_once_and_says_nothing_about_others() -> None:
    ended(2, remove_on_complete=True)
    dead = ended(1, State.DEAD, ago=60 * SECOND, remove_on_complete=True)
    usual = ended(1)
    assert prune()["succeeded"] == 2
    assert left() == ids(dead + usual)


def test_what_holds_a_unique_key_for_a_time_is_kept_until_then() -> None:
    [task] = ended(1, remove_on_complete=True, unique=Throttle(period=3600))
    prune()
    assert left() == [task.pk]
    Task.objects.update(unique_until=Now())
    assert prune()["succeeded"] == 1


def test_a_number_keeps_the_newest_of_a_type_and_outcome() -> None:
    made = ended(5, remove_on_complete=2)
    other = ended(2, ago=SECOND, task_type="demo.fail", remove_on_complete=2)
    assert prune()["succeeded"] == 3
    assert left() == ids(made[3:] + other)


def test_an_age_keeps_a_task_for_so_long_and_with_a_number_the_first_of_both_counts() -> None:
    ended(1, ago=61 * SECOND, remove_on_fail={"age": 60}, state=State.DEAD)
    young = ended(3, remove_on_fail={"age": 60, "count": 2}, state=State.DEAD)
    assert prune()["dead"] == 2
    assert left() == ids(young[1:])


def test_a_handlers_own_age_may_be_longer_than_the_settings(settings: Any) -> None:
    old = ended(1, ago=(settings.KEEP_SUCCEEDED_DAYS + 1) * DAY)
    Task.objects.update(keep={"succeeded": {"age": 365 * 86400.0}})
    also_old = ended(1, ago=(settings.KEEP_SUCCEEDED_DAYS + 1) * DAY, remove_on_complete=100)
    assert prune()["succeeded"] == 1  # a number alone is kept for as long as the settings say
    assert left() == ids(old)
    assert also_old[0].pk not in left()


def test_dead_tasks_are_in_the_archive_before_they_go(settings: Any, tmp_path: Path) -> None:
    settings.ARCHIVE_DIR = tmp_path
    [task] = ended(1, State.DEAD, remove_on_fail=True)
    assert prune()["dead"] == 1
    [file] = tmp_path.glob("dead-*.jsonl.gz")
    assert str(task.pk) in gzip.decompress(file.read_bytes()).decode()


def test_what_was_retried_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    [task] = ended(1, State.EXPIRED)
    seen = {task.pk: Task.objects.get(pk=task.pk).finished_at}
    Task.objects.update(finished_at=Now())
    assert retention._delete_as_seen(State.EXPIRED, seen) == 0
    assert left() == [task.pk]


def test_many_go_in_batches_and_stop_when_asked_to() -> None:
    ended(25, remove_on_complete=True)
    answers = iter([False, False, True, True, True, True, True])
    assert prune(batch=10, stop=lambda: next(answers))["succeeded"] == 20


def test_a_task_without_a_retention_of_its_own_has_no_entry_for_it() -> None:
    [task] = tasks(1)
    assert task.keep is None
    assert tasks(1, remove_on_complete=False)[0].keep is None


# What is still known.


def test_a_clients_id_is_remembered_and_its_uuid_with_it() -> None:
    [task] = ended(1, key="invoice-7", remove_on_complete=True)
    prune()
    for name in ("invoice-7", str(task.pk)):
        found = pruned.trace(name)
        assert found is not None
        assert (found.state, found.finished_at is None) == (State.SUCCEEDED, False)
    again = submit("demo.echo", {"message": "another"}, key="invoice-7")
    assert again.pk != task.pk


def test_of_a_task_that_has_run_its_attempts_tell(worker: StagedWorker) -> None:
    made = tasks(1, remove_on_complete=True)
    worker.end(worker.run(*made))
    prune()
    found = pruned.trace(str(made[0].pk))
    assert found is not None
    assert found.state == State.SUCCEEDED
    assert not Pruned.objects.exists()


def test_what_has_never_been_is_not_said_to_be_pruned() -> None:
    assert pruned.trace(str(tasks(1)[0].pk)) is None
    assert pruned.trace("no-such-id") is None
    assert pruned.trace(str(uuid.uuid4())) is None


def test_an_id_of_our_own_that_is_older_than_all_retentions_was_pruned() -> None:
    found = pruned.trace("01700000-0000-7000-8000-000000000000")  # of 2020
    assert found is not None
    assert "longer than 90 days" in found.rule


def test_what_is_remembered_goes_when_no_outcome_is_kept_for_so_long() -> None:
    ended(1, key="old", remove_on_complete=True)
    prune()
    Pruned.objects.update(pruned_at=Now() - 91 * DAY)
    prune()
    assert pruned.trace("old") is None
