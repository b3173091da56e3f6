"""Sensitive values from submission to result: never in the open outside the handler."""

import json
import os
import subprocess
import sys
import uuid

import pytest
from celery.result import AsyncResult
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from capataz.errors import Conflict, InvalidSubmission
from capataz.keyring import new_key
from capataz.lifecycle.submission import Submission, submit, submit_many
from capataz.models import Attempt, Event, Task
from capataz.sensitive import MASK
from tests.processes import ROOT
from tests.records import state

CANARY = "canary-7f3a9"
LOGIN = {"user": "ann", "password": f"{CANARY}-p", "headers": {"X": f"{CANARY}-h"}, "number": 987654321}
pytestmark = pytest.mark.django_db


def everything_in_the_database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema")
        tables = [name for (name,) in cursor.fetchall()]
        texts = []
        for name in tables:
            cursor.execute(f"SELECT coalesce(json_agg(t)::text, '') FROM \"{name}\" AS t")
            texts += cursor.fetchone()
    return "\n".join(texts)


def assert_clean(text: str) -> None:
    assert CANARY not in text and "987654321" not in text


def test_what_is_kept_is_encrypted_and_the_rest_readable():
    task = submit("testing.login", LOGIN)
    assert task.payload["user"] == "ann"
    assert_clean(everything_in_the_database())


def test_the_same_submission_is_the_same_task_although_no_two_ciphertexts_are():
    for key in ("some-key", str(uuid.uuid4())):
        first = submit("testing.login", LOGIN, key=key)
        assert submit("testing.login", LOGIN, key=key) == first
        with pytest.raises(Conflict):
            submit("testing.login", {**LOGIN, "password": "another"}, key=key)
    twice = [Submission(type="testing.login", data=LOGIN, key="twice")] * 2
    assert len(set(submit_many(twice))) == 1


def test_the_name_of_encrypted_values_is_reserved():
    with pytest.raises(InvalidSubmission, match="marks encrypted values"):
        submit("demo.echo", {"message": {"$encrypted": "v1:x:y"}})


@pytest.mark.django_db(transaction=True)
def test_a_secret_reaches_its_handler_and_nobody_else(platform, broker, eventually):
    ends = {then: submit("testing.login", {**LOGIN, "then": then}) for then in ("return", "fail", "invalid")}
    worker, dispatcher = platform.start_worker("1,1", options=("-l", "DEBUG")), platform.start_dispatcher()
    eventually(lambda: [state(each) for each in ends.values()] == ["succeeded", "dead", "dead"])
    assert_clean(everything_in_the_database())
    for key in broker.scan_iter():
        assert_clean(repr(broker.dump(key)))
    platform.stop_all()
    for process in (worker, dispatcher):
        assert_clean(process.log.read_text())
    result = {"session": f"{CANARY}-p-987654321", "length": 14, "X": f"{CANARY}-h"}
    assert AsyncResult(str(ends["return"].pk)).get(timeout=1) == result
    failed = Attempt.objects.filter(task_id=ends["fail"].pk).first()
    assert MASK in failed.error and MASK in failed.traceback
    assert "password: Input should be a valid string" in Task.objects.get(pk=ends["invalid"].pk).error


def test_rotation_leaves_nothing_under_the_old_key(settings):
    settings.ENCRYPTION_KEYS = old = [new_key("old")]
    task, other = submit("testing.login", LOGIN), submit("demo.echo", {"message": "x"})
    settings.ENCRYPTION_KEYS = [new_key("new"), *old]
    call_command("rotate_keys")
    for each in (task, other):
        before, _ = each.payload, each.refresh_from_db()
        assert (each.payload == before) == (each is other)
    text = json.dumps(task.payload)
    assert "v1:old" not in text and "v1:new" in text
    settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[:1]
    assert submit("testing.login", LOGIN, key=str(task.pk)) == task


def test_rotation_says_that_a_key_is_missing(settings):
    settings.ENCRYPTION_KEYS = [new_key("old")]
    submit("testing.login", LOGIN)
    settings.ENCRYPTION_KEYS = [new_key("new")]
    with pytest.raises(CommandError, match="1 tasks cannot be read"):
        call_command("rotate_keys")


def test_a_platform_without_a_key_does_not_start_where_handlers_need_one():
    environment = os.environ | {"APP_ENV": "production", "SECRET_KEY": "x" * 50}
    check = [sys.executable, "manage.py", "check"]
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode and "capataz.E004" in done.stderr, done.stderr
    with_key = environment | {"ENCRYPTION_KEYS": new_key("one")}
    done = subprocess.run(check, cwd=ROOT, env=with_key, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_faulty_key_stops_the_start_and_is_not_printed():
    environment = os.environ | {"ENCRYPTION_KEYS": f"one:{CANARY}"}
    check = [sys.executable, "manage.py", "check"]
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode and "must be 32 bytes in base64" in done.stderr
    assert_clean(done.stdout + done.stderr)


def test_events_tell_who_has_looked(admin_client):
    task = submit("testing.login", LOGIN)
    page = f"/admin/capataz/task/{task.pk}/change/"
    assert_clean(admin_client.get(page).content.decode())
    assert CANARY in admin_client.get(f"{page}?reveal=1").content.decode()
    assert Event.objects.get(kind="task.revealed").detail["by"] == "admin"
    assert settings.ENCRYPTION_KEYS  # made by itself outside production
