"""Celery's ways of calling a handler: each leaves a row or is refused, and no part is lost in silence."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from celery import chain, chord, chunks, current_app, group, signature
from django_celery_results.models import ChordCounter

from capataz.errors import InvalidSubmission
from capataz.models import Task
from tests.workload import plain_add

pytestmark = pytest.mark.django_db


def echo() -> Any:
    return current_app.tasks["demo.echo"]


def hello() -> Any:
    return echo().si(message="hello")


@pytest.fixture
def refused(broker: redis.Redis) -> Callable[..., str]:
    """Calls something, and checks that it is refused and that no part of it has gone anywhere."""

    def check(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        with pytest.raises(InvalidSubmission) as refusal:
            call(*args, **kwargs)
        assert not Task.objects.exists()
        assert not ChordCounter.objects.exists()
        assert broker.keys("*default*") == []
        return str(refusal.value)

    return check


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("link", [signature("tests.workload.plain_add")]),
        ("link_error", [signature("tests.workload.plain_add")]),
        ("chain", [signature("tests.workload.plain_add")]),
        ("chord", signature("tests.workload.plain_add")),
        ("group_id", "a-group"),
        ("shadow", "another name"),
        ("ignore_result", True),
        ("headers", {"trace": "1"}),
        ("exchange", "elsewhere"),
        ("routing_key", "elsewhere"),
        ("serializer", "pickle"),
        ("compression", "gzip"),
        ("delivery_mode", 1),
        ("mandatory", True),
        ("stamped_headers", ["customer"]),
        ("replaced_task_nesting", 1),
        ("nonsense", "x"),
    ],
)
def test_an_option_that_would_be_dropped_is_refused_by_name(
    refused: Callable[..., str], name: str, value: Any
) -> None:
    arguments = {"kwargs": {"message": "x"}, name: value}
    assert refused(echo().apply_async, **arguments).startswith(f"{name}: ")
    assert refused(current_app.send_task, "demo.echo", **arguments).startswith(f"{name}: ")
    assert refused(hello().set(**{name: value}).apply_async).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "options",
    [
        {"retry": True, "retry_policy": {"max_retries": 3}},
        {"producer": object(), "connection": object(), "publisher": object()},
        {"root_id": "a", "parent_id": "b", "reply_to": "c", "route_name": "d", "add_to_parent": True},
        {"link": [], "link_error": None, "chain": None, "group_id": None, "chord": None, "headers": {}},
        {"ignore_result": False, "shadow": "", "serializer": "json", "exchange": None, "routing_key": None},
        {"group_index": 0, "replaced_task_nesting": 0, "periodic_task_name": "every minute"},
    ],
)
def test_what_celery_adds_by_itself_is_accepted(options: dict[str, Any]) -> None:
    result = echo().apply_async(kwargs={"message": "x"}, **options)
    assert Task.objects.get().pk.hex == result.id.replace("-", "")


def test_the_options_that_mean_something_are_kept() -> None:
    named = "0198a000-0000-7000-8000-000000000001"
    options = {"queue": "email", "priority": 7, "time_limit": 9, "soft_time_limit": 8, "task_id": named}
    hello().apply_async(eta=datetime(2040, 1, 1), expires="2041-01-01T00:00:00+01:00", **options)
    task = Task.objects.get(pk=named)
    assert (task.queue, task.priority, task.time_limit, task.soft_time_limit) == ("email", 7, 9, 8)
    # Without a time zone it is UTC's, as for Celery.
    assert task.run_at == datetime(2040, 1, 1, tzinfo=UTC)
    assert task.expires_at == datetime(2040, 12, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize(("name", "value"), [("eta", "soon"), ("eta", 5), ("expires", "later")])
def test_what_is_no_time_is_refused(refused: Callable[..., str], name: str, value: Any) -> None:
    assert refused(echo().apply_async, kwargs={"message": "x"}, **{name: value}).startswith(f"{name}: ")


def plain() -> Any:
    return plain_add.si(1, 2)


CANVASES = {
    "a chain that ends with a handler": lambda: plain() | hello(),
    "a chain with a handler in the middle": lambda: chain(plain(), hello(), plain()),
    "a group with one handler": lambda: group(plain(), plain(), hello()),
    "a group of a generator": lambda: group(each for each in (plain(), hello())),
    "a chord of handlers": lambda: chord([hello(), hello()], plain()),
    "a chord that calls a handler": lambda: chord([plain(), plain()], hello()),
    "a chain into a group": lambda: plain() | group(plain(), hello()),
    "a handler by its name": lambda: chain(plain(), signature("demo.echo", kwargs={"message": "x"})),
    "a plain task with a link": lambda: plain().on_error(plain()).set(link=[hello()]),
    "a plain task with an error link": lambda: plain().on_error(hello()),
    "a group with a link inside": lambda: group(plain().set(link=[hello()]), plain()),
    "a map": lambda: echo().map([{"message": "x"}]),
    "a starmap": lambda: echo().starmap([({"message": "x"},)]),
    "chunks": lambda: echo().chunks([({"message": "x"},)], 1),
    "a chain with a map in it": lambda: hello() | echo().map([{"message": "x"}]),
}


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_that_names_a_handler_is_refused_before_any_part_is_sent(
    refused: Callable[..., str], name: str
) -> None:
    for call in ("apply_async", "delay"):
        assert "demo.echo" in refused(getattr(CANVASES[name](), call))


def test_a_chord_whose_body_comes_with_the_call_is_refused(refused: Callable[..., str]) -> None:
    assert "demo.echo" in refused(chord([plain(), plain()]), hello())


@pytest.mark.parametrize(
    ("call", "pointer"),
    [
        (lambda: chain(hello(), hello().set(link=[hello()])).delay(), "link"),
        (lambda: chain(hello(), hello()).apply_async(link=[hello()]), "link"),
        (lambda: group(hello(), hello()).apply_async(link_error=[hello()]), "link_error"),
        (lambda: chain(hello(), hello().set(task_id="no-uuid")).delay(), "task_id"),
        (lambda: chain(hello(), echo().s(1, 2)).delay(), "data"),
        (lambda: chain(hello(), echo().s(nonsense=1)).delay(), "nodes/demo.echo 1/data/nonsense"),
    ],
)
def test_what_a_canvas_of_handlers_cannot_mean_is_refused(
    refused: Callable[..., str], call: Callable[[], Any], pointer: str
) -> None:
    assert refused(call).startswith(f"{pointer}: ")


def test_options_and_arguments_of_a_canvas_are_those_of_what_starts_first(broker: redis.Redis) -> None:
    named = "0198a000-0000-7000-8000-000000000002"
    last = hello().set(task_id=named, priority=9)
    result = chain(echo().s(), last).apply_async(({"message": "first"},), countdown=60)
    assert result.id == named
    first = Task.objects.get(pk=result.parent.id)
    assert (first.state, first.payload) == ("scheduled", {"message": "first"})
    assert Task.objects.filter(pk=named, priority=9, state="blocked").exists()


def test_a_canvas_of_plain_tasks_goes_as_ever(broker: redis.Redis) -> None:
    (plain() | plain()).apply_async()
    group(plain(), plain()).apply_async()
    plain().apply_async(link=plain())
    chunks(plain_add.s(), [(1, 2)], 1).apply_async()
    assert sum(broker.llen(key) for key in broker.keys("default*")) == 5


def test_a_handler_is_not_run_by_calling_its_celery_task() -> None:
    with pytest.raises(TypeError, match="submit it"):
        echo()(message="x")


def test_apply_runs_a_handler_here_and_now() -> None:
    assert current_app.tasks["demo.compute"].apply(kwargs={"n": 10}).get() == {"result": 55}
    assert not Task.objects.exists()


def test_a_forged_map_does_not_run_a_handler() -> None:
    forged = current_app.tasks["celery.map"].apply((hello(), [{"message": "x"}]))
    assert forged.state == "FAILURE"
    assert "submit it" in str(forged.result)
