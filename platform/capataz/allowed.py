"""What a setting may be, beyond what marshmallow has a rule for. Each refuses with ValidationError."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from environs import ValidationError

from capataz.errors import ConfigurationError
from capataz.keyring import parse_key


def each(rule: Callable[[str], Any]) -> Callable[[list[str]], None]:
    """A list of which every element keeps to ``rule``."""

    def check(values: list[str]) -> None:
        for value in values:
            rule(value)

    return check


def api_url(url: str) -> None:
    """An address that a secret may be sent to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValidationError("is not a URL") from None
    if not host or port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        raise ValidationError("is not a URL")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValidationError("must not have a login, a query or a fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValidationError("must start with https://, or for a loopback address with http://")


def encryption_key(text: str) -> None:
    """A key as the ring takes it."""
    try:
        parse_key(text)
    except ConfigurationError as error:
        raise ValidationError(str(error)) from None


def outbound_secrets(given: Any) -> None:
    """Secrets by name, each with its value or values and the hosts that it may be sent to."""
    if not isinstance(given, dict):
        raise ValidationError("must be a JSON object of secrets by name")
    for name, secret in given.items():
        value = secret.get("value") if isinstance(secret, dict) else None
        hosts = secret.get("hosts") if isinstance(secret, dict) else None
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(each, str) and each for each in values):
            raise ValidationError(f"{name} needs a value: a text, or a list of texts")
        if not isinstance(hosts, list) or not hosts or not all(isinstance(each, str) for each in hosts):
            raise ValidationError(f"{name} needs hosts: a list of those it may be sent to")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
