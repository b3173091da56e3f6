"""``manage.py setup_platform``: fills in what is missing, and leaves alone what is there."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import connection
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import Settings

from capataz.handlers import find
from capataz.lifecycle.submission import known_queues
from capataz.management.schedules import SHIPPED
from capataz.models import Queue, Role
from capataz.models.membership import role_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, settings: Settings) -> Path:
    settings.CAPATAZ_DATA_DIR = tmp_path
    return tmp_path


def test_everything_is_there_afterwards(data_dir: Path) -> None:
    call_command("setup_platform", verbosity=0)
    assert set(Queue.objects.values_list("name", flat=True)) == known_queues()
    assert set(Group.objects.values_list("name", flat=True)) == set(Role.values)
    cleanup = PeriodicTask.objects.get(name="capataz: cleanup")
    assert (cleanup.task, cleanup.crontab.minute, cleanup.crontab.hour) == ("cleanup", "17", "*")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'capataz_event'::regclass")
        assert cursor.fetchone()[0] >= 4


def test_the_first_user_finds_the_password_in_a_private_file(data_dir: Path) -> None:
    call_command("setup_platform", verbosity=0)
    file = data_dir / "admin-password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    admin = User.objects.get()
    assert admin.check_password(file.read_text().strip())
    assert role_of(admin) is Role.ADMIN


def test_twice_is_as_good_as_once(data_dir: Path) -> None:
    call_command("setup_platform", verbosity=0)
    password = (data_dir / "admin-password").read_text()
    PeriodicTask.objects.update(enabled=False)
    Queue.objects.update(pause_reason="mine")
    call_command("setup_platform", verbosity=0)
    assert (data_dir / "admin-password").read_text() == password
    assert PeriodicTask.objects.filter(enabled=False).count() == PeriodicTask.objects.count() == len(SHIPPED)
    assert CrontabSchedule.objects.filter(minute="17").count() == 1
    assert not Queue.objects.exclude(pause_reason="mine").exists()


def test_the_shipped_schedules_are_rows_that_beat_follows_and_nothing_overwrites(data_dir: Path) -> None:
    call_command("setup_platform", verbosity=0)
    for shipped in SHIPPED:
        made = PeriodicTask.objects.get(name=shipped.name)
        at = made.crontab
        times = [at.minute, at.hour, at.day_of_month, at.month_of_year, at.day_of_week]
        assert (" ".join(times), str(at.timezone), made.enabled) == (shipped.crontab, "UTC", shipped.enabled)
        assert made.capataz.overlap == "skip"
        assert find(made.task).queue == "maintenance"
    other = CrontabSchedule.objects.create(minute="5", hour="5")
    PeriodicTask.objects.filter(name="capataz: backup").update(crontab=other, task="demo.echo")
    PeriodicTask.objects.get(name="capataz: upkeep").delete()
    call_command("setup_platform", verbosity=0)
    changed = PeriodicTask.objects.get(name="capataz: backup")
    assert (changed.crontab, changed.task) == (other, "demo.echo")
    assert PeriodicTask.objects.filter(name="capataz: upkeep").exists()


def test_no_user_is_made_where_there_is_one(data_dir: Path) -> None:
    User.objects.create_user("ana")
    call_command("setup_platform", verbosity=0)
    assert User.objects.count() == 1
    assert not (data_dir / "admin-password").exists()


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("viewer", "view_task", "change_task"),
        ("producer", "add_task", "change_task"),
        ("operator", "change_queue", "add_token"),
        ("admin", "add_token", "delete_task"),
    ],
)
def test_each_role_may_what_it_should(role: str, may: str, may_not: str) -> None:
    call_command("setup_platform", verbosity=0)
    user = User.objects.create_user("ana", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    assert role_of(user) == Role(role)
    assert user.has_perm(f"capataz.{may}")
    assert user.has_perm("capataz.view_task")
    assert not user.has_perm(f"capataz.{may_not}")
