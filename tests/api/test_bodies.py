"""Bodies: what is not good JSON is refused with a reason, whatever it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz.api.body import MAX_DEPTH, parse
from capataz.api.problems import Problem


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"a": NaN}', "not_json"),
        (b'{"a": -Infinity}', "not_json"),
        (b'{"a": 1e999}', "out_of_range"),
        (b'{"a": 9223372036854775808}', "out_of_range"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "out_of_range"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a": "\\u0000"}', "nul"),
        (b'{"\\u0000": 1}', "nul"),
        (b'{"a": "\\ud800"}', "lone_surrogate"),
        (b'{"\\udfff": 1}', "lone_surrogate"),
        (b'"\xed\xa0\x80"', "not_utf8"),
        (b"\xff\xfe", "not_utf8"),
        (b'\xef\xbb\xbf{"a": 1}', "not_json"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "too_deep"),
    ],
)
def test_what_cannot_be_kept_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(Problem) as refusal:
        parse(body)
    assert refusal.value.status == 422
    assert [fault.code for fault in refusal.value.faults] == [code]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\\\u0000"}',
        b'"\\ud83d\\ude00"',
        b"-9223372036854775808",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
    ],
)
def test_what_only_looks_bad_is_read(body: bytes) -> None:
    assert parse(body) == json.loads(body)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(anything)
def test_good_json_comes_back_as_it_was(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        parse(body)
    except Problem as refusal:
        assert refusal.status == 422
