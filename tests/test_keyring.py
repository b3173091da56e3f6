"""The key ring: only what was sealed for a place, by a key that is there, can be opened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capataz.errors import CannotDecrypt, ConfigurationError
from capataz.keyring import KeyRing, new_key

ONE, TWO = f"one:{'A' * 42}E=", f"two:{'B' * 42}E="
RING = KeyRing([ONE, TWO])


@given(st.binary(), st.binary())
def test_what_was_sealed_is_opened_and_not_in_the_text(plain, about):
    sealed = RING.seal(plain, about)
    assert RING.open(sealed, about) == plain
    assert sealed.startswith("v1:one:") and sealed != RING.seal(plain, about)


@given(st.data())
def test_whatever_character_is_changed_it_is_refused(data):
    sealed = RING.seal(b"a secret of some length", b"here")
    at = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda each: each != sealed[at]))
    with pytest.raises(CannotDecrypt):
        RING.open(sealed[:at] + other + sealed[at + 1 :], b"here")


@pytest.mark.parametrize("text", ["", "v1", "v1:one", "v1:one:", "v1:one:AAAA", "v2:one:AAAA", "v1:one:é"])
def test_what_is_no_sealed_text_is_refused(text):
    with pytest.raises(CannotDecrypt):
        RING.open(text, b"")


def test_another_place_is_refused():
    with pytest.raises(CannotDecrypt, match="moved"):
        RING.open(RING.seal(b"x", b"here"), b"there")


def test_every_key_opens_and_the_first_seals():
    sealed = KeyRing([TWO]).seal(b"old", b"")
    assert RING.open(sealed, b"") == b"old"
    assert RING.seal(b"new", b"").startswith("v1:one:")
    with pytest.raises(CannotDecrypt, match="needs the key 'two'"):
        KeyRing([ONE]).open(sealed, b"")


def test_another_key_of_the_same_name_is_refused():
    with pytest.raises(CannotDecrypt, match="another key of this name"):
        KeyRing([new_key("one")]).open(RING.seal(b"x", b""), b"")


def test_without_a_key_nothing_is_sealed_in_the_open():
    with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS"):
        KeyRing([]).seal(b"x", b"")


@pytest.mark.parametrize(
    "key", ["", "one", "one:", "one:c2hvcnQ=", f"o ne:{'A' * 43}=", f":{'A' * 43}=", f"{ONE}A", "one:ñ"]
)
def test_a_key_that_is_none_is_refused_without_being_repeated(key):
    with pytest.raises(ConfigurationError) as caught:
        KeyRing([key])
    assert not (secret := key.partition(":")[2]) or secret not in str(caught.value)


def test_two_keys_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="named twice"):
        KeyRing([ONE, new_key("one")])
