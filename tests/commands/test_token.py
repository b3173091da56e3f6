"""``manage.py token``: a secret is shown once, and a revoked token is worth nothing."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from capataz.models import Token
from capataz.models.token import digest_of

pytestmark = pytest.mark.django_db


def token(*words: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("token", *words, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_create_prints_the_secret_alone() -> None:
    out, err = token("create", "--role", "operator", "--name", "deploy")
    [secret] = out.splitlines()
    made = Token.objects.valid().get(digest=digest_of(secret))
    assert (made.name, made.role, made.expires_at) == ("deploy", "operator", None)
    assert secret not in err


def test_a_token_may_end_by_itself() -> None:
    token("create", "--role", "viewer", "--name", "x", "--days", "90")
    ends = Token.objects.get().expires_at
    assert ends is not None
    assert abs(ends - timezone.now() - timedelta(days=90)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "words",
    [
        ["--role", "king", "--name", "x"],
        ["--role", "viewer"],
        ["--role", "viewer", "--name", ""],
        ["--role", "viewer", "--name", "x", "--days", "0"],
    ],
)
def test_nonsense_is_refused(words: list[str]) -> None:
    with pytest.raises(CommandError):
        token("create", *words)
    assert not Token.objects.exists()


def test_list_shows_no_secret() -> None:
    secret = token("create", "--role", "viewer", "--name", "monitor")[0].strip()
    out, _ = token("list")
    assert "monitor" in out
    assert "valid" in out
    assert secret not in out


def test_a_revoked_token_is_worth_nothing() -> None:
    token("create", "--role", "viewer", "--name", "x")
    token("revoke", str(Token.objects.get().pk))
    assert not Token.objects.valid().exists()
    assert "revoked" in token("list")[0]


def test_what_is_not_there_cannot_be_revoked() -> None:
    with pytest.raises(CommandError, match="no token 999"):
        token("revoke", "999")
