"""Signed webhooks, as the Standard Webhooks specification has them: an id, a time, and HMAC-SHA256 of both
and the body, once for each key, so that keys can be replaced while both are known."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
PREFIX = "whsec_"
# Seconds by which the clocks of sender and receiver may differ.
TOLERANCE = 300.0


class BadSignature(Exception):
    """A message that nobody who knows a key has sent just now."""


def sign(message_id: str, body: bytes, keys: Sequence[str], *, at: float | None = None) -> dict[str, str]:
    """The headers for this body; ``at`` is seconds since 1970, now unless given."""
    if not message_id or "." in message_id:
        raise ValueError("a message's id must not be empty, and must not contain a full stop")
    moment = str(int(time.time() if at is None else at))
    signatures = " ".join(f"v1,{_signature(message_id, moment, body, key)}" for key in keys)
    return {ID: message_id, TIMESTAMP: moment, SIGNATURE: signatures}


def verify(
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[str],
    *,
    tolerance: float = TOLERANCE,
    at: float | None = None,
) -> str:
    """The id of the message, if one of its signatures is by one of these keys and it is not older, or newer,
    than ``tolerance`` seconds. Raises BadSignature otherwise. Takes the same time wherever the two differ."""
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, moment, signatures = given[ID], given[TIMESTAMP], given[SIGNATURE]
    except KeyError as missing:
        raise BadSignature(f"the header {missing.args[0]} is missing") from None
    if not moment.isascii() or not moment.isdigit():
        raise BadSignature(f"the header {TIMESTAMP} is not a time")
    if abs((time.time() if at is None else at) - int(moment)) > tolerance:
        raise BadSignature("the message is too old or from the future")
    offered = [each[3:] for each in signatures.split(" ") if each.startswith("v1,")]
    expected = [_signature(message_id, moment, body, key) for key in keys]
    fits = [hmac.compare_digest(one.encode(), other.encode()) for one in offered for other in expected]
    if not any(fits):
        raise BadSignature("no signature is by a key that is known")
    return message_id


def _signature(message_id: str, moment: str, body: bytes, key: str) -> str:
    signed = b".".join([message_id.encode(), moment.encode(), body])
    return base64.b64encode(hmac.new(_key(key), signed, hashlib.sha256).digest()).decode()


def _key(key: str) -> bytes:
    """``whsec_`` is followed by Base64; whatever begins otherwise is the key itself."""
    if not key.startswith(PREFIX):
        return key.encode()
    try:
        return base64.b64decode(key.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"what follows {PREFIX} in a key must be Base64") from None
