"""The message: what it points to, how kombu reads it, and what a forger gets."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import virtual

from capataz import pointer
from capataz.pointer import HEADER, MAX_IDS
from capataz.worker.transport import _decode

A_TASK = "0198a000-0000-7000-8000-000000000001"

batches = st.lists(st.uuids(), min_size=1, max_size=MAX_IDS, unique=True)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
# Values that kombu's JSON replaces by objects of their own: dates, decimals, bytes.
typed = st.fixed_dictionaries(
    {
        "__type__": st.sampled_from(["bytes", "base64", "datetime", "date", "time", "decimal", "uuid", "x"]),
        "__value__": st.none()
        | st.integers()
        | st.text()
        | st.dictionaries(st.text(), st.text(), max_size=2),
    }
)


def delivered(entry: str) -> virtual.Message:
    """The message as kombu's virtual transport hands it to a consumer."""
    decoded = _decode(entry.encode())
    assert decoded is not None
    return virtual.Message(decoded, channel=virtual.Channel.__new__(virtual.Channel))


def forged(**changes: Any) -> bytes:
    """One of our messages with some of its fields replaced."""
    message = json.loads(pointer.encode("demo.echo", "default", 4, [uuid.UUID(A_TASK)]))
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = message
        for key in outer:
            place = place[key]
        place[last] = value
    return json.dumps(message).encode()


@given(batches)
def test_a_message_announces_exactly_the_ids_it_was_made_from(ids: list[uuid.UUID]) -> None:
    message = json.loads(pointer.encode("demo.echo", "default", 0, ids))
    assert pointer.is_pointer(message["headers"])
    assert pointer.decode(message["headers"]) == ids


def test_kombu_reads_the_message_and_finds_the_ids_in_its_headers() -> None:
    ids = [uuid.uuid4(), uuid.uuid4()]
    message = delivered(pointer.encode("demo.echo", "email", 4, ids))
    assert message.headers["task"] == "demo.echo"
    assert pointer.decode(message.headers) == ids
    assert message.properties["delivery_info"]["routing_key"] == "email"
    assert message.decode() == [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def test_a_message_never_bears_the_id_of_a_task() -> None:
    task_id = uuid.uuid4()
    message = delivered(pointer.encode("demo.echo", "default", 0, [task_id]))
    own = {message.headers["id"], message.headers["root_id"], message.properties["correlation_id"]}
    assert str(task_id) not in own
    assert str(task_id) != message.delivery_tag


def test_two_deliveries_of_one_message_have_tags_of_their_own() -> None:
    entry = pointer.encode("demo.echo", "default", 0, [uuid.uuid4()])
    assert delivered(entry).delivery_tag != delivered(entry).delivery_tag


def test_a_message_holds_nothing_but_type_queue_and_ids() -> None:
    one, other = (json.loads(pointer.encode("demo.echo", "default", 0, [uuid.UUID(A_TASK)])) for _ in "ab")
    for message in (one, other):
        for name in ("id", "root_id"):
            del message["headers"][name]
        for name in ("correlation_id", "delivery_tag"):
            del message["properties"][name]
    assert one == other


def test_the_most_urgent_list_bears_the_queues_own_name() -> None:
    assert pointer.queue_key("email", 0) == "email"
    assert pointer.queue_key("email", 4) == "email:4"


def test_an_id_that_is_named_twice_is_announced_once() -> None:
    assert pointer.decode({HEADER: [A_TASK, A_TASK]}) == [uuid.UUID(A_TASK)]


@pytest.mark.parametrize(
    "ids",
    [
        None,
        [],
        A_TASK,
        {A_TASK: 1},
        (A_TASK,),
        [None],
        [1],
        [[A_TASK]],
        [A_TASK.upper().replace("0198A", "0198AF")],
        [A_TASK.replace("-", "")],
        [f"{{{A_TASK}}}"],
        [f"urn:uuid:{A_TASK}"],
        [A_TASK + "\n"],
        [A_TASK + "'; DROP TABLE capataz_task; --"],
        ["\u0660" + A_TASK[1:]],
        [A_TASK, ""],
        [A_TASK, A_TASK.encode()],
        [A_TASK] * (MAX_IDS + 1),
    ],
)
def test_a_forged_list_of_ids_is_a_value_error(ids: Any) -> None:
    with pytest.raises(ValueError, match="ids"):
        pointer.decode({HEADER: ids})


def test_headers_without_our_mark_are_no_pointer() -> None:
    for headers in ({}, {"task": "demo.echo"}, None, [], HEADER, 5):
        assert not pointer.is_pointer(headers)


@given(st.dictionaries(st.sampled_from([HEADER, "task", "id"]), anything))
def test_whatever_the_headers_are_decoding_gives_ids_or_a_value_error(headers: dict[str, Any]) -> None:
    try:
        ids = pointer.decode(headers)
    except ValueError:
        return
    assert all(isinstance(each, uuid.UUID) for each in ids)


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"5",
        b'"text"',
        b"[1,2]",
        b"{}",
        b"[" * 100_000,
        b'{"headers": null, "properties": null, "body": ""}',
        forged(headers=[]),
        forged(headers="capataz"),
        forged(headers=None),
        forged(properties=7),
        forged(properties__delivery_info="default"),
        forged(properties__delivery_info={"exchange": "", "routing_key": 5}),
        forged(properties__delivery_tag=5),
        forged(body=None),
        forged(body={"__type__": "unheard of", "__value__": 1}),
        forged(body={"__type__": "decimal", "__value__": "not a number"}),
        forged(body={"__type__": "bytes", "__value__": 5}),
    ],
)
def test_an_entry_that_is_no_message_is_dropped_and_never_raises(entry: bytes) -> None:
    assert _decode(entry) is None


@given(st.dictionaries(st.text(), anything | typed), st.sampled_from(["headers", "properties", "body"]))
def test_no_forged_part_of_a_message_raises(part: dict[str, Any], name: str) -> None:
    message = json.loads(forged())
    message[name] = part
    entry = json.dumps(message, default=repr).encode()
    assert _decode(entry) is None or name != "properties"


@given(st.binary())
def test_no_bytes_in_a_list_raise(entry: bytes) -> None:
    assert _decode(entry) is None
