"""Django's Tasks framework on Capataz: what its documentation says holds."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core import mail
from django.db import transaction
from django.test import override_settings
from django.utils import timezone
from django_tasks import TaskResultStatus, default_task_backend, signals, task_backends
from django_tasks.exceptions import InvalidTaskError, TaskResultDoesNotExist, TaskResultMismatch

from capataz.django_tasks import TYPE, own_priority
from capataz.lifecycle.submission import submit
from capataz.models import Task
from tests import django_examples as examples

ARGUMENTS = {"emails": ["user@example.com"], "subject": "You have a message", "message": "Hello there!"}
BACKEND = "capataz.django_tasks.CapatazBackend"


def test_the_example_of_the_documentation(capataz_tasks: Any) -> None:
    result = examples.email_users.enqueue(**ARGUMENTS)
    assert (result.status, result.attempts, result.is_finished) == (TaskResultStatus.READY, 0, False)
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    row = Task.objects.get(pk=result.id)
    assert (row.type, row.queue, row.priority) == (TYPE, "emails", own_priority(2))
    capataz_tasks.drain()
    result.refresh()
    assert (result.status, result.return_value, result.attempts, result.errors) == ("SUCCESSFUL", 1, 1, [])
    assert [message.subject for message in mail.outbox] == ["You have a message"]

    again = examples.email_users.get_result(result.id)
    assert (again.kwargs, again.return_value, again.task) == (ARGUMENTS, 1, examples.email_users)
    assert default_task_backend.get_result(result.id).task == examples.email_users


def test_a_task_may_take_its_context(capataz_tasks: Any) -> None:
    result = examples.email_in_context.enqueue(**ARGUMENTS)
    capataz_tasks.drain()
    result.refresh()
    assert result.return_value == [1, result.id, "RUNNING"]


def test_arguments_go_through_json(capataz_tasks: Any) -> None:
    with pytest.raises(TypeError):
        examples.process_data.enqueue(datetime.now(UTC))
    result = examples.double_dictionary.enqueue((1, 2, 3))
    capataz_tasks.drain()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is TypeError
    assert "TypeError: unhashable type: 'list'" in result.errors[0].traceback
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


def test_using_makes_another_task(capataz_tasks: Any) -> None:
    when = timezone.now() + timedelta(hours=1)
    changed = examples.email_users.using(priority=100, queue_name="default", run_after=when)
    assert (examples.email_users.priority, changed.priority) == (2, 100)
    result = changed.enqueue(**ARGUMENTS)
    row = Task.objects.get(pk=result.id)
    assert (row.priority, row.queue, row.state, row.run_at) == (10, "default", "scheduled", when)
    assert examples.email_users.get_result(result.id).task == changed
    assert capataz_tasks.drain() == []
    capataz_tasks.travel(3601)
    assert [task.pk for task in capataz_tasks.drain()] == [row.pk]


def test_priorities_keep_their_order() -> None:
    ours = [own_priority(each) for each in range(-100, 101)]
    assert ours == sorted(ours)
    assert set(ours) == set(range(11))
    assert own_priority(0) == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"priority": 101},
        {"queue_name": "nowhere"},
        {"run_after": datetime(2030, 1, 1)},
        {"priority": 1.5},
    ],
)
def test_what_django_refuses_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidTaskError):
        examples.process_data.using(**bad)


def test_an_async_task_runs_and_is_enqueued_from_async_code(capataz_tasks: Any) -> None:
    result: Any = async_to_sync(examples.later.aenqueue)(41)
    capataz_tasks.drain()
    async_to_sync(result.arefresh)()
    assert result.return_value == 42
    found: Any = async_to_sync(examples.later.aget_result)(result.id)
    assert found.return_value == 42


def test_a_task_of_a_rolled_back_transaction_was_never_enqueued(capataz_tasks: Any) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        result = examples.process_data.enqueue(1)
        raise ZeroDivisionError
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(result.id)


def test_results_that_are_not_there(capataz_tasks: Any) -> None:
    for unknown in (str(uuid.uuid4()), "nonsense", str(submit("demo.echo", {"message": "x"}).pk)):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(unknown)
    result = examples.process_data.enqueue(1)
    with pytest.raises(TaskResultMismatch):
        examples.later.get_result(result.id)


def test_errors_name_their_class_and_signals_are_sent(capataz_tasks: Any) -> None:
    told: list[tuple[str, str]] = []

    def tell(signal: Any, task_result: Any, **_: Any) -> None:
        told.append((task_result.id, str(task_result.status)))

    sent = [signals.task_enqueued, signals.task_started, signals.task_finished]
    for signal in sent:
        signal.connect(tell)
    try:
        result = examples.fails.enqueue()
        capataz_tasks.drain()
    finally:
        for signal in sent:
            signal.disconnect(tell)
    assert told == [(result.id, "READY"), (result.id, "RUNNING"), (result.id, "FAILED")]
    result.refresh()
    assert [error.exception_class for error in result.errors] == [examples.OwnError]


@override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": {"ATTEMPTS": 2}}})
def test_a_backend_may_allow_more_attempts(capataz_tasks: Any) -> None:
    result = examples.fails_once.enqueue(f"django-{uuid.uuid4().hex}.log")
    capataz_tasks.drain()
    result.refresh()
    assert (result.return_value, result.attempts) == (42, 2)
    assert [error.exception_class for error in result.errors] == [LookupError]


def test_only_tasks_of_django_can_be_named(capataz_tasks: Any) -> None:
    names = ["not_a_task", "no_such_name", "logger.debug"]
    tasks = [submit(TYPE, {"function": f"tests.django_examples.{name}"}) for name in names]
    capataz_tasks.drain()
    assert [Task.objects.get(pk=task.pk).state for task in tasks] == ["dead"] * 3


def test_the_backend_says_what_it_can() -> None:
    backend = task_backends["default"]
    can = ("supports_defer", "supports_async_task", "supports_get_result", "supports_priority")
    assert all(getattr(backend, each) for each in can)


def test_a_worker_runs_them(platform: Any, eventually: Any) -> None:
    platform.start_dispatcher()
    platform.start_worker("1,1")
    results: list[Any] = [
        examples.later.enqueue(1),
        examples.fails.enqueue(),
        examples.email_in_context.enqueue(**ARGUMENTS),
    ]

    def all_finished() -> bool:
        for result in results:
            result.refresh()
        return all(result.is_finished for result in results)

    eventually(all_finished)
    assert [str(result.status) for result in results] == ["SUCCESSFUL", "FAILED", "SUCCESSFUL"]
    assert results[0].return_value == 2
    for each in results:
        assert each.enqueued_at <= each.started_at == each.last_attempted_at <= each.finished_at
    assert results[1].errors[0].exception_class is examples.OwnError
    assert results[2].return_value[0] == len(results[2].worker_ids) == 1
