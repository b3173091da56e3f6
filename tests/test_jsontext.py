"""JSON text that PostgreSQL can keep, and nothing else."""

import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capataz import jsontext

LIMIT = 1024 * 1024

keepable = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e15, 1e15) | st.text(keepable),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(keepable), inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def containing_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def accepted(value: Any) -> str:
    try:
        return jsontext.dumps(value, limit=LIMIT)
    except ValueError:
        return ""


def round_trip(text: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb::text", [text])
        return json.loads(cursor.fetchone()[0])


@pytest.mark.django_db
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(documents)
def test_any_json_document_is_kept_as_it_is(value: Any) -> None:
    assert round_trip(jsontext.dumps(value, limit=LIMIT)) == value


@pytest.mark.parametrize(
    "value", ["\x00", "a\x00b", ["\x00"], {"\x00": 1}, {"a": {"b": "\\\x00"}}, "\\\\\x00"]
)
def test_the_character_nul_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"U\+0000"):
        jsontext.dumps(value, limit=LIMIT)


@pytest.mark.django_db
@pytest.mark.parametrize("text", [r"\u0000", r"\\u0000", r"a\u0000b", r"\\\u0000", "u0000", "\\"])
def test_the_six_letters_that_spell_nul_are_kept(text: str) -> None:
    assert round_trip(jsontext.dumps({"text": text}, limit=LIMIT)) == {"text": text}


@given(st.text(alphabet="\\u0x\x00"))
def test_nul_is_found_exactly_where_it_is(text: str) -> None:
    assert jsontext.has_nul(json.dumps(text)) == ("\x00" in text)


@pytest.mark.parametrize("value", ["\ud800", "\udfff", ["a\ud83d"], {"\ude00": 1}])
def test_a_lone_surrogate_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        jsontext.dumps(value, limit=LIMIT)


@pytest.mark.django_db
def test_a_character_beyond_the_basic_plane_is_kept() -> None:
    assert round_trip(jsontext.dumps("😀", limit=LIMIT)) == "😀"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], {"x": math.inf}, {math.nan: 1}])
def test_nan_and_infinities_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        jsontext.dumps(value, limit=LIMIT)


@pytest.mark.parametrize("value", [{1}, object(), b"bytes", datetime(2026, 1, 1), {(1, 2): 3}, 1j])
def test_what_json_has_no_form_for_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        jsontext.dumps(value, limit=LIMIT)


def test_a_number_too_long_for_python_to_read_back_is_refused() -> None:
    with pytest.raises(ValueError, match="digits"):
        jsontext.dumps(10**5000, limit=LIMIT)


@pytest.mark.parametrize("make", [lambda: nested(100_000), containing_itself], ids=["deep", "circular"])
def test_what_is_nested_without_end_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"nested|Circular"):
        jsontext.dumps(make(), limit=LIMIT)


@pytest.mark.django_db
def test_the_deepest_value_that_is_accepted_postgresql_can_keep() -> None:
    text = next(text for depth in range(1000, 0, -10) if (text := accepted(nested(depth))))
    assert round_trip(text)


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert jsontext.dumps("ñ" * 4, limit=10) == '"ññññ"'
    with pytest.raises(ValueError, match="11 bytes of JSON, and at most 10"):
        jsontext.dumps("ñ" * 4 + "n", limit=10)


def test_printable_text_keeps_what_a_text_column_can_keep() -> None:
    assert jsontext.printable("¿qué? 😀\n", 100) == "¿qué? 😀\n"


@given(st.text(st.characters()), st.integers(2, 50))
def test_printable_text_has_neither_nul_nor_surrogates_and_both_its_ends(text: str, limit: int) -> None:
    printed = jsontext.printable(text, limit)
    assert "\x00" not in printed
    assert printed.encode().decode() == printed
    kept = printed.partition("\n[... ")[0] if len(text) > limit else printed
    assert len(kept) <= limit


def test_the_middle_of_a_long_text_is_left_out_and_counted() -> None:
    assert jsontext.printable("a" * 60 + "b" * 60, 20) == (
        "aaaaaaaaaa\n[... 100 characters left out ...]\nbbbbbbbbbb"
    )
