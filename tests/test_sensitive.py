"""Sensitive values: sealed in the JSON of a row, masked for whoever looks, scrubbed from what is said."""

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz import sensitive
from capataz.errors import CannotDecrypt, ConfigurationError
from capataz.sensitive import MASK, NOTHING, PAYLOAD, RESULT, Declared

ID = uuid.uuid4()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def sealed(value, *paths, task_id=ID):
    return json.loads(sensitive.seal(json.dumps(value), Declared(paths), PAYLOAD, task_id))


@given(st.dictionaries(st.sampled_from("abc"), VALUES))
def test_what_was_sealed_comes_back_and_the_rest_is_untouched(payload):
    kept = sealed(payload, "payload.a", "payload.b.*")
    assert sensitive.opened(kept, PAYLOAD, ID) == payload
    assert kept.get("c") == payload.get("c")
    assert "a" not in payload or list(kept["a"]) == ["$encrypted"]


@given(VALUES)
def test_a_whole_payload_can_be_sensitive(payload):
    kept = sealed(payload, "payload")
    assert list(kept) == ["$encrypted"]
    assert sensitive.opened(kept, PAYLOAD, ID) == payload


def test_a_value_cannot_be_moved_to_another_task_column_or_place():
    kept = sealed({"a": "x", "b": "y"}, "payload.*")
    swapped = {"a": kept["b"], "b": kept["a"]}
    for value, column, task_id in [(kept, PAYLOAD, uuid.uuid4()), (kept, RESULT, ID), (swapped, PAYLOAD, ID)]:
        with pytest.raises(CannotDecrypt):
            sensitive.opened(value, column, task_id)


def test_text_without_an_encrypted_value_is_not_even_read():
    assert sensitive.opened_text("no JSON", PAYLOAD, ID) == "no JSON"
    assert sensitive.opened_text(b"no JSON", PAYLOAD, ID) == b"no JSON"


def test_bytes_are_opened_as_well_as_text():
    text = json.dumps(sealed({"a": "ñ"}, "payload.a"))
    for given_text in (text, text.encode()):
        assert json.loads(sensitive.opened_text(given_text, PAYLOAD, ID)) == {"a": "ñ"}


@pytest.mark.parametrize(
    "name",
    [
        *("password", "userPassword", "client_secret", "Authorization", "X-Api-Key", "apiKey", "api_key"),
        *("accessToken", "cookie", "Set-Cookie", "dsn", "databaseDsn", "card", "cardNumber", "credit_card"),
        *("pass", "db-pass"),
    ],
)
def test_names_that_sound_secret_are_masked(name):
    assert sensitive.masked({"a": [{name: "x"}]}, NOTHING, PAYLOAD) == {"a": [{name: MASK}]}


@pytest.mark.parametrize("name", ["compass", "passenger", "discard", "dashboard", "postcard", "key", "user"])
def test_names_that_only_contain_such_a_word_are_not(name):
    assert sensitive.masked({name: "x"}, NOTHING, PAYLOAD) == {name: "x"}


def test_nothing_is_masked_that_says_nothing():
    empty = {"password": None, "secret": "", "token": False}
    assert sensitive.masked(empty, NOTHING, PAYLOAD) == empty


def test_a_handler_may_say_that_a_value_is_public_after_all():
    declared = Declared(public=["payload.token"])
    assert sensitive.masked({"token": "x", "a": {"token": "y"}}, declared, PAYLOAD) == {
        "token": "x",
        "a": {"token": MASK},
    }


def test_encrypted_and_declared_values_are_masked_whole():
    declared = Declared(["payload.a"])
    for kept in (sealed({"a": {"b": 1}}, "payload.a"), {"a": {"b": 1}}):  # also from before it was declared
        assert sensitive.masked(kept, declared, PAYLOAD) == {"a": MASK}
    assert sensitive.masked(sealed({"a": 1}, "payload.a"), NOTHING, PAYLOAD) == {"a": MASK}


def test_secrets_are_scrubbed_from_a_text_in_every_form():
    payload = {"password": 'hunter2\'s "ñ"', "deep": {"x": [123456, "other"]}, "user": "ann", "pin": "12"}
    scrub = sensitive.scrubber(payload, Declared(["payload.deep"]))
    said = f"{payload['password']} {payload['password']!r} {json.dumps(payload)} 123456 other ann"
    text = scrub(said)
    for secret in ("hunter2", "123456", "other"):
        assert secret not in text
    assert "ann" in text


def test_the_longer_of_two_secrets_is_scrubbed_whole():
    scrub = sensitive.scrubber({"token": "abcd", "secret": "abcdef"}, NOTHING)
    assert scrub("abcdef") == MASK


@pytest.mark.parametrize("path", ["", "password", "payload.", "payload..a", "results.a"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(ConfigurationError, match="use payload, result"):
        Declared([path])
