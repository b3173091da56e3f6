"""``manage.py token``: make, list and revoke the bearer tokens of the API."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models.functions import Now

from capataz.models import Role, Token

LONGEST_LIFE = 36_500  # days


class Command(BaseCommand):
    """Translates the words of the command line into tokens."""

    help = "Make, list and revoke API tokens. A new token's secret is printed once, alone on stdout."

    def add_arguments(self, parser: CommandParser) -> None:
        """One word for each thing that can be done."""
        words = parser.add_subparsers(dest="word", required=True, parser_class=CommandParser)
        create = words.add_parser("create", help="make a token and print its secret")
        create.add_argument("--role", choices=Role.values, required=True)
        create.add_argument("--name", type=_name, required=True, help="who will use it")
        create.add_argument("--days", type=_days, help="after how many days it ends (never)")
        words.add_parser("list", help="show the tokens, without their secrets")
        revoke = words.add_parser("revoke", help="make a token worthless at once")
        revoke.add_argument("id", type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the first word says."""
        match options["word"]:
            case "create":
                self._create(options["name"], Role(options["role"]), options["days"])
            case "list":
                self._list()
            case "revoke":
                self._revoke(options["id"])

    def _create(self, name: str, role: Role, days: int | None) -> None:
        token, secret = Token.issue(name=name, role=role)
        if days is not None:
            Token.objects.filter(pk=token.pk).update(expires_at=Now() + timedelta(days=days))
        self.stderr.write(f"token {token.pk} for {name}, role {role.value}; it is shown this once:")
        self.stdout.write(secret)

    def _list(self) -> None:
        valid = set(Token.objects.valid().values_list("pk", flat=True))
        for token in Token.objects.order_by("pk"):
            used = f"last used {token.last_used_at:%Y-%m-%d %H:%M}" if token.last_used_at else "never used"
            standing = "valid" if token.pk in valid else "revoked" if token.revoked_at else "expired"
            self.stdout.write(f"{token.pk}\t{token.hint}…\t{token.role}\t{standing}\t{used}\t{token.name}")

    def _revoke(self, token_id: int) -> None:
        token = Token.objects.filter(pk=token_id).first()
        if token is None:
            raise CommandError(f"there is no token {token_id}; `manage.py token list` shows them")
        Token.objects.filter(pk=token_id, revoked_at__isnull=True).update(revoked_at=Now())
        self.stderr.write(f"token {token_id} is revoked")


def _name(text: str) -> str:
    if not 0 < len(text) <= 100 or not text.isprintable():
        raise ArgumentTypeError("use 1 to 100 printable characters")
    return text


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LONGEST_LIFE:
        raise ArgumentTypeError(f"use 1 to {LONGEST_LIFE} days")
    return int(text)
