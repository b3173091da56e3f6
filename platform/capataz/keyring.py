"""The key ring: AES-256-GCM under the first key, decryption under all of them."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from functools import cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from capataz.errors import CannotDecrypt, ConfigurationError

KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
KEY_BYTES = 32
NONCE_BYTES = 12  # random: one key is good for some four thousand million values (NIST SP 800-38D, 8.3)
VERSION = "v1"


class KeyRing:
    """Keys by their ids. Sealed text is ``v1:<key id>:<base64url of nonce and ciphertext>``."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys`` are ``id:base64`` each, the one that encrypts first. Raises ConfigurationError."""
        self._ciphers: dict[str, AESGCM] = {}
        for text in keys:
            name, secret = parse_key(text)
            if name in self._ciphers:
                raise ConfigurationError(f"the encryption key {name!r} is named twice")
            self._ciphers[name] = AESGCM(secret)
        self.first = next(iter(self._ciphers), None)

    def seal(self, plain: bytes, about: bytes) -> str:
        """``plain``, encrypted for one place, which ``about`` names. Raises ConfigurationError for no key."""
        if self.first is None:
            raise ConfigurationError(
                "there is no encryption key: set ENCRYPTION_KEYS, `manage.py encryption_key` makes one"
            )
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._ciphers[self.first].encrypt(nonce, plain, about)
        return f"{VERSION}:{self.first}:{base64.urlsafe_b64encode(sealed).decode()}"

    def open(self, sealed: str, about: bytes) -> bytes:
        """What was sealed for this place. Raises CannotDecrypt, saying why, for anything else."""
        version, name, text = (*sealed.split(":", 2), "", "")[:3]
        if version != VERSION:
            raise CannotDecrypt("an encrypted value has no form that this version knows")
        if name not in self._ciphers:
            raise CannotDecrypt(f"an encrypted value needs the key {name!r}, which ENCRYPTION_KEYS lacks")
        try:
            raw = base64.urlsafe_b64decode(text.encode())
            if base64.urlsafe_b64encode(raw).decode() != text:  # one value has one form
                raise ValueError("not canonical")
            return self._ciphers[name].decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], about)
        except (InvalidTag, ValueError, OverflowError):
            detail = "was damaged, moved from another place, or made with another key of this name"
            raise CannotDecrypt(f"an encrypted value {detail} ({name!r})") from None


def parse_key(text: str) -> tuple[str, bytes]:
    """The id and the 32 bytes of ``id:base64``. Raises ConfigurationError, without repeating the key."""
    name, _, encoded = text.partition(":")
    if not KEY_ID.fullmatch(name):
        raise ConfigurationError("an encryption key is id:base64, its id 1 to 32 letters, digits, - or _")
    try:
        secret = base64.b64decode(encoded.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigurationError(f"the encryption key {name!r} must be {KEY_BYTES} bytes in base64")
    return name, secret


def new_key(name: str) -> str:
    """A new random key of this id, as ENCRYPTION_KEYS takes it."""
    return f"{name}:{base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()}"


@cache
def ring_of(keys: tuple[str, ...]) -> KeyRing:
    """The ring of these keys, made once."""
    return KeyRing(keys)
