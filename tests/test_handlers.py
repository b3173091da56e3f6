"""Handlers: what may be declared, what payloads may be, and what a running one may say."""

import math
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from capataz import handlers, priority
from capataz.errors import ConfigurationError, InvalidSubmission
from capataz.flow import Limit
from capataz.handlers import Handler, RunningTask, handler
from capataz.policy import fixed


class Address(BaseModel):
    city: str
    code: Annotated[int, Field(ge=0)] = 0


class Parcel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    to: Address
    tags: list[str] = []
    weight: float = 1


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """Whatever a test registers is forgotten after it, and Celery never hears of it."""
    registry, listeners = dict(handlers._registry), list(handlers._listeners)
    handlers._listeners.clear()
    yield
    handlers._registry.clear()
    handlers._registry.update(registry)
    handlers._listeners[:] = listeners


def declare(name: str = "testing.parcel", **options: Any) -> Handler[Any]:
    return handler(name, **options)(lambda task, payload: payload)


def faults_of(known: Handler[Any], data: Any) -> dict[str, str]:
    with pytest.raises(InvalidSubmission) as caught:
        known.parse(data)
    return {fault.pointer: fault.code for fault in caught.value.faults}


def test_a_declared_handler_is_found_by_its_name() -> None:
    made = declare(payload=Parcel, queue="parcels", priority="high", retry=fixed(1))
    assert handlers.find("testing.parcel") is made
    assert handlers.is_registered("testing.parcel")
    assert made in handlers.registered()
    assert (made.queue, made.priority, made.retry) == ("parcels", 8, fixed(1))


def test_a_handler_that_declares_nothing_takes_any_object_at_the_default_priority() -> None:
    made = declare()
    assert made.load(made.parse({"any": ["thing"]})) == {"any": ["thing"]}
    assert (made.queue, made.priority) == ("default", priority.DEFAULT)


def test_registered_handlers_come_by_name() -> None:
    declare("zz.last")
    declare("aa.first")
    names = [each.name for each in handlers.registered()]
    assert names == sorted(names)


def test_a_listener_hears_of_handlers_before_and_after_it() -> None:
    heard: list[str] = []
    before = declare("testing.before")
    handlers.on_registration(lambda each: heard.append(each.name))
    after = declare("testing.after")
    assert {before.name, after.name} <= set(heard)


@pytest.mark.parametrize(
    "name", ["", "Echo", "1echo", "demo echo", "demo/echo", "ñandú", "a" * 65, "demo.echo\n"]
)
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="must match"):
        declare(name)


def test_a_name_that_is_taken_is_refused() -> None:
    declare()
    with pytest.raises(ConfigurationError, match="registered twice"):
        declare()


@pytest.mark.parametrize("queue", ["", "Email", "a:2", "a" * 65, "e mail"])
def test_a_queue_that_is_no_name_is_refused(queue: str) -> None:
    with pytest.raises(ConfigurationError, match="queue"):
        declare(queue=queue)


@pytest.mark.parametrize("limit", [0, -1, 24 * 3600 + 1, math.nan, math.inf])
def test_a_time_limit_out_of_range_is_refused(limit: float) -> None:
    with pytest.raises(ConfigurationError, match="time_limit"):
        declare(time_limit=limit)


@pytest.mark.parametrize("soft", [0, -1, 10, 11, math.nan])
def test_a_soft_limit_that_is_not_below_the_hard_one_is_refused(soft: float) -> None:
    with pytest.raises(ConfigurationError, match="soft_time_limit"):
        declare(soft_time_limit=soft, time_limit=10)


@pytest.mark.parametrize("wrong", [True, 11, "urgent"])
def test_a_priority_off_the_scale_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="priority"):
        declare(priority=wrong)


def test_a_refused_declaration_registers_nothing() -> None:
    with pytest.raises(ConfigurationError):
        declare(time_limit=0)
    assert not handlers.is_registered("testing.parcel")


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    declare()
    with pytest.raises(
        InvalidSubmission, match=r"no handler is registered as 'nope'.*testing\.parcel"
    ) as caught:
        handlers.find("nope")
    [fault] = caught.value.faults
    assert (fault.pointer, fault.code) == ("type", "unknown_type")


@pytest.mark.parametrize("name", [None, 5, [], {}])
def test_a_type_that_is_no_text_is_unknown(name: Any) -> None:
    with pytest.raises(InvalidSubmission):
        handlers.find(name)


def test_a_payload_comes_back_as_it_was_given() -> None:
    known = declare(payload=Parcel)
    given = {"to": {"city": "Quito", "code": 7}, "tags": ["a", "ñ"], "weight": 2.5}
    assert known.load(known.parse(given)) == Parcel.model_validate(given)


def test_defaults_are_left_to_the_worker_that_reads_the_payload() -> None:
    known = declare(payload=Parcel)
    assert known.parse({"to": {"city": "Lima"}}) == '{"to":{"city":"Lima"}}'


def test_every_fault_of_a_payload_is_named_with_its_place() -> None:
    wrong = {"to": {"code": -1}, "tags": ["a", 5], "colour": "red"}
    assert faults_of(declare(payload=Parcel), wrong) == {
        "data/to/city": "missing",
        "data/to/code": "greater_than_equal",
        "data/tags/1": "string_type",
        "data/colour": "extra_forbidden",
    }


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_a_payload_that_is_no_object_is_refused_as_a_whole(data: Any) -> None:
    assert faults_of(declare(), data).keys() == {"data"}


@pytest.mark.parametrize("text", ["\x00", "a\x00b"])
def test_a_payload_with_nul_is_refused(text: str) -> None:
    assert faults_of(declare(), {"deep": [text]}) == {"data": "nul"}


def test_a_payload_with_a_lone_surrogate_is_refused() -> None:
    assert "data" in {pointer.partition("/")[0] for pointer in faults_of(declare(), {"text": "\ud800"})}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_say_is_refused_and_never_becomes_null(value: float) -> None:
    given = {"to": {"city": "Lima"}, "weight": value}
    assert faults_of(declare(payload=Parcel), given).keys() & {"data", "data/weight"}


def test_what_is_nested_too_deeply_is_refused_as_a_fault() -> None:
    data: dict[str, Any] = {}
    for _ in range(10_000):
        data = {"a": data}
    assert faults_of(declare(), data).keys()


@pytest.mark.parametrize("percent", [-1, 101, math.nan])
def test_progress_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        RunningTask(uuid.uuid4(), "x", 1, 1).progress(percent)  # type: ignore[arg-type]


def test_progress_is_reported_in_whole_percent_and_one_line() -> None:
    said: list[tuple[int, str]] = []
    task = RunningTask(uuid.uuid4(), "x", 1, 1, report_progress=lambda *each: said.append(each))
    task.progress(50.9, "m" * 300)  # type: ignore[arg-type]
    assert said == [(50, "m" * 200)]


def test_a_handler_can_be_called_like_the_function_it_is() -> None:
    known = declare(payload=Parcel)
    task = RunningTask(uuid.uuid4(), known.name, 1, 1)
    assert known(task, known.load('{"to":{"city":"Lima"}}')).to.city == "Lima"


def test_what_lies_in_the_open_may_not_be_sensitive() -> None:
    for limit, place in (
        (Limit(concurrency=1, per="payload.card.number"), "payload.card.number"),
        (Limit(rate="1/s", burst=2, weight="payload.card"), "payload.card"),
    ):
        with pytest.raises(ConfigurationError, match=f"{place} is sensitive"):
            handler("testing.open_limit", limit=limit, sensitive=["payload.card"])(lambda task, payload: None)
