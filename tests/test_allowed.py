"""What a setting may be: an address that a secret may be sent to, and lists whose elements keep to a rule."""

from __future__ import annotations

import pytest
from environs import ValidationError

from capataz.allowed import api_url, each


@pytest.mark.parametrize(
    "url",
    ["https://api.github.com", "https://git.example:8443/api/v3/", "http://127.0.0.1:9", "http://[::1]/x"],
)
def test_a_secret_may_be_sent_over_https_or_within_this_machine(url: str) -> None:
    api_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://api.github.com", "must start with https://"),
        ("http://127.0.0.1.example", "must start with https://"),
        ("http://10.0.0.1", "must start with https://"),
        ("file:///etc/passwd", "is not a URL"),
        ("file://localhost/etc/passwd", "must start with https://"),
        ("https://me:x@git.example", "must not have a login"),
        ("https://git.example/?x=1", "must not have a login, a query"),
        ("https://git.example:99999", "is not a URL"),
        ("https://[git.example", "is not a URL"),
        ("https://git example", "is not a URL"),
        ("", "is not a URL"),
    ],
)
def test_a_secret_is_sent_nowhere_else(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        api_url(url)


def test_one_element_that_breaks_the_rule_is_enough() -> None:
    check = each(api_url)
    check([])
    check(["https://one.example"])
    with pytest.raises(ValidationError):
        check(["https://one.example", "two"])
