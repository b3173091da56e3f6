"""``manage.py setup_platform``: what a platform needs in its database before its first task."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, Permission, User
from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.db.models import Q

from capataz.lifecycle import retention
from capataz.lifecycle.submission import known_queues
from capataz.management import schedules
from capataz.models import Queue, Role

# The advisory lock under which one setup works at a time.
SETUP_LOCK = 0x43505A53

# What each role may do beyond the role before it, in Django's own permissions: app label to codenames.
GRANTS: dict[Role, dict[str, list[str]]] = {
    Role.VIEWER: {
        "capataz": [
            f"view_{noun}"
            for noun in (
                "task",
                "attempt",
                "worker",
                "queue",
                "event",
                "schedule",
                "circuit",
                "report",
                "typepolicy",
            )
        ],
        "tasks": ["view_externalsource"],
        "django_celery_beat": [
            *("view_periodictask", "view_crontabschedule", "view_intervalschedule", "view_clockedschedule")
        ],
    },
    Role.PRODUCER: {"capataz": ["add_task"]},
    # What others' services and files say may be meant for few.
    Role.OPERATOR: {
        "capataz": [
            *("change_task", "change_queue", "change_circuit"),
            *("add_typepolicy", "change_typepolicy", "delete_typepolicy"),
        ],
        "tasks": ["view_externalitem", "view_indexedfile"],
    },
    Role.ADMIN: {
        "capataz": ["view_token", "add_token", "change_token", "add_schedule", "change_schedule"],
        "django_celery_beat": ["*"],
        "auth": ["*"],
    },
}


class Command(BaseCommand):
    """Fills in what is missing, and leaves alone what is there."""

    help = "Create queues, partitions, roles, the shipped schedules and a first user. May be run at any time."

    def handle(self, *args: Any, **options: Any) -> None:
        """All of it, in one transaction, one setup at a time."""
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [SETUP_LOCK])
            retention.prepare_partitions()
            _declare_queues()
            _declare_roles()
            schedules.create_missing()
            password_file = _make_first_user()
        if password_file is not None and options["verbosity"] > 0:
            self.stdout.write(f"made the user admin; its password is in {password_file}")


def _declare_queues() -> None:
    Queue.objects.bulk_create([Queue(name=name) for name in sorted(known_queues())], ignore_conflicts=True)


def _declare_roles() -> None:
    """Groups of the roles' names. What somebody has granted a group beyond this stays granted."""
    granted = Q(pk__in=[])
    for role in Role:
        for app, codenames in GRANTS[role].items():
            granted |= Q(content_type__app_label=app) if codenames == ["*"] else _named(app, codenames)
        group, _ = Group.objects.get_or_create(name=role.value)
        group.permissions.add(*Permission.objects.filter(granted))


def _named(app: str, codenames: list[str]) -> Q:
    return Q(content_type__app_label=app, codename__in=codenames)


def _make_first_user() -> Path | None:
    """A superuser ``admin`` if there is no user at all; returns where its password lies."""
    if User.objects.exists():
        return None
    password = secrets.token_urlsafe(18)
    User.objects.create_superuser("admin", password=password)
    # Inside the transaction: a password that could not be written is one that nobody has.
    return _keep(password, Path(settings.CAPATAZ_DATA_DIR) / "admin-password")


def _keep(password: str, path: Path) -> Path:
    """Write the password so that only its owner may read it, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=".admin-password-")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
    Path(new).replace(path)
    return path
