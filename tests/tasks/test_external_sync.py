"""Copies of issues and messages: whatever happens on the way, nothing is left out for good."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

from capataz.handlers import RunningTask
from capataz.lifecycle.submission import submit
from tasks import external_sync, github, slack, web
from tasks.models import ExternalItem, ExternalSource
from tests.outside import JANUARY, Outside, Question, Reply, serve

pytestmark = pytest.mark.django_db

SECRETS = "github-secret-7f3a", "slack-secret-9b1c"


@pytest.fixture
def outside(settings: Settings) -> Iterator[Outside]:
    """Both services; one repository and one channel are configured, and have nothing yet."""
    service = Outside(issues={"ana/one": {}, "ana/two": {}}, messages={"C01": {}})
    end = serve(service)
    settings.GITHUB_API_URL = settings.SLACK_API_URL = service.url
    settings.GITHUB_TOKEN, settings.SLACK_TOKEN = SECRETS
    settings.EXTERNAL_GITHUB_REPOSITORIES, settings.EXTERNAL_SLACK_CHANNELS = ["ana/one"], ["C01"]
    settings.KEEP_EXTERNAL_DAYS = 36_500
    yield service
    end()


def run() -> dict[str, Any]:
    """The result of one run."""
    shown: list[int] = []
    task = RunningTask(uuid.uuid4(), "external_sync", 1, 1, lambda percent, message: shown.append(percent))
    result = external_sync.sync.function(task, external_sync.sync.load("{}"))
    assert shown == sorted(shown)
    return result


def failed_run() -> str:
    """What a run that has to fail says."""
    with pytest.raises(web.SourceFailed) as raised:
        run()
    return str(raised.value)


def numbers(source: str = "github:ana/one") -> list[int]:
    """The numbers of the issues that are stored."""
    return sorted(int(number) for number in stored(source).values_list("external_id", flat=True))


def seconds(source: str = "slack:C01") -> list[int]:
    """The times of the messages that are stored, in seconds since the beginning of 2026."""
    return sorted(int(float(at)) - JANUARY for at in stored(source).values_list("external_id", flat=True))


def stored(source: str) -> QuerySet[ExternalItem]:
    return ExternalItem.objects.filter(source__name=source)


def row(source: str) -> ExternalSource:
    return ExternalSource.objects.get(name=source)


def asked(outside: Outside, path: str) -> list[Question]:
    """What was asked of this path since this was asked last."""
    found = [question for question in outside.asked if path in question.path]
    outside.asked = [question for question in outside.asked if path not in question.path]
    return found


def broken(path: str, *reply: Any) -> Any:
    """Answers questions to ``path`` with this."""
    return lambda question: reply if path in question.path else None


# --- Nothing, or something ----------------------------------------------------------------------------


def test_it_does_nothing_until_something_is_configured(outside: Outside, settings: Settings) -> None:
    settings.EXTERNAL_GITHUB_REPOSITORIES = settings.EXTERNAL_SLACK_CHANNELS = []
    assert run() == {"skipped": external_sync.NOTHING, "deleted": 0}
    assert outside.asked == []


def test_the_first_look_goes_back_as_far_as_copies_are_kept(outside: Outside, settings: Settings) -> None:
    settings.KEEP_EXTERNAL_DAYS = 10
    run()
    ten_days_ago = datetime.now(UTC) - timedelta(days=10)
    since = datetime.fromisoformat(asked(outside, "issues")[0].query["since"])
    oldest = datetime.fromtimestamp(float(asked(outside, "history")[0].query["oldest"]), UTC)
    assert all(abs(start - ten_days_ago) < timedelta(hours=1) for start in (since, oldest))


def test_copies_are_deleted_when_their_time_is_over(outside: Outside, settings: Settings) -> None:
    outside.message("C01", 1)
    outside.message("C01", 2)
    run()
    stored("slack:C01").filter(external_id__startswith=JANUARY + 2).update(changed_at=Now())
    settings.KEEP_EXTERNAL_DAYS, settings.EXTERNAL_GITHUB_REPOSITORIES = 1, []
    settings.EXTERNAL_SLACK_CHANNELS = []
    assert run()["deleted"] == 1
    assert seconds() == [2]


def test_what_was_looked_at_longest_ago_comes_first(outside: Outside, settings: Settings) -> None:
    run()
    settings.EXTERNAL_GITHUB_REPOSITORIES = ["ana/one", "ana/two"]
    outside.asked = []
    run()
    assert [question.path for question in outside.asked] == [
        "/repos/ana/two/issues",
        "/repos/ana/one/issues",
        "/conversations.history",
    ]


# --- GitHub -------------------------------------------------------------------------------------------


def test_all_pages_are_read_and_then_only_what_has_changed(outside: Outside) -> None:
    outside.page = 3
    for number in range(1, 9):
        outside.issue("ana/one", number, 100 * number)
    assert run()["sources"]["github:ana/one"]["pages"] == 4
    assert numbers() == list(range(1, 9))
    assert row("github:ana/one").cursor == "2026-01-01T00:13:20Z"
    asked(outside, "issues")

    outside.issue("ana/one", 2, 2000, "another title")
    run()
    assert [question.query["since"] for question in asked(outside, "issues")] == ["2026-01-01T00:13:15Z"]
    changed = stored("github:ana/one").get(external_id="2")
    assert changed.document["title"] == "another title"
    assert changed.changed_at == datetime.fromtimestamp(JANUARY + 2000, UTC)
    assert numbers() == list(range(1, 9))


def test_a_repository_where_nothing_changes_costs_an_answer_without_contents(outside: Outside) -> None:
    outside.issue("ana/one", 1, 10)
    run()
    assert run()["sources"]["github:ana/one"] == {"pages": 1, "items": 1}
    asked(outside, "issues")
    assert run()["sources"]["github:ana/one"] == {"pages": 1, "items": 0}
    [question] = asked(outside, "issues")
    assert question.headers["If-None-Match"] == row("github:ana/one").etag != ""
    outside.issue("ana/one", 2, 10)  # in the second of the cursor
    run()
    assert numbers() == [1, 2]


def test_an_issue_that_changes_between_two_pages_hides_no_other(outside: Outside) -> None:
    outside.page = 3
    for number in range(1, 8):
        outside.issue("ana/one", number, 100 * number)

    def change_the_first(question: Question) -> None:
        if len(outside.asked) == 2:  # what was on the first page moves to the last
            outside.issue("ana/one", 1, 5000)

    outside.instead = change_the_first
    run()
    assert numbers() == [1, 2, 3, 4, 5, 6, 7]


def test_more_issues_of_one_second_than_fit_on_a_page_are_all_read(outside: Outside) -> None:
    outside.page = 3
    for number in range(1, 8):
        outside.issue("ana/one", number, 100)
    outside.issue("ana/one", 8, 200)
    run()
    assert numbers() == list(range(1, 9))


def test_pages_that_were_not_reached_are_not_taken_for_unchanged(outside: Outside) -> None:
    outside.page = 3
    for number in range(1, 9):
        outside.issue("ana/one", number, 100)
    outside.instead = lambda question: (500, {}, {}) if "page" in question.query else None
    for _ in range(2):
        assert "status 500" in failed_run()
        assert numbers() == [1, 2, 3]
    outside.instead = lambda question: None
    run()
    assert numbers() == list(range(1, 9))
    assert row("github:ana/one").etag == ""


def test_a_next_page_at_another_origin_is_not_asked(outside: Outside) -> None:
    elsewhere = Outside(issues={"ana/one": {}})
    end = serve(elsewhere)
    outside.issue("ana/one", 1, 100)
    run()
    page = list(outside.issues["ana/one"].values())
    for link in (f"{elsewhere.url}/repos/ana/one/issues", "https://127.0.0.1/", "http://[x/", "//x/"):
        outside.instead = broken("issues", 200, {"Link": f'<{link}>; rel="next"'}, page)
        assert "github:ana/one: names a next page at another origin" in failed_run()
    assert elsewhere.asked == []
    end()


def test_a_long_backlog_is_read_in_several_runs(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "PAGES", 2)
    outside.page = 2
    for number in range(1, 9):
        outside.issue("ana/one", number, 100 * number)
    run()
    assert 0 < len(numbers()) < 8
    for _ in range(4):
        run()
    assert numbers() == list(range(1, 9))


def test_a_service_that_asks_for_a_rest_gets_it_and_the_others_go_on(
    outside: Outside, settings: Settings
) -> None:
    settings.EXTERNAL_GITHUB_REPOSITORIES = ["ana/one", "ana/two"]
    outside.issue("ana/two", 5, 100)
    outside.instead = broken("ana/one", 429, {"Retry-After": "1000"}, {})
    assert "alone for 0:16:40" in run()["sources"]["github:ana/one"]["waiting"]
    assert numbers("github:ana/two") == [5]
    wait = row("github:ana/one").not_before - datetime.now(UTC)
    assert timedelta(seconds=900) < wait <= timedelta(seconds=1000)
    asked(outside, "ana/one")

    outside.instead = lambda question: None
    assert "waiting" in run()["sources"]["github:ana/one"]
    assert asked(outside, "ana/one") == []
    ExternalSource.objects.filter(name="github:ana/one").update(not_before=Now())
    outside.issue("ana/one", 4, 100)
    run()
    assert numbers() == [4]
    assert row("github:ana/one").not_before is None


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "{soon}"}, 2000),
        (403, {"Retry-After": "Wed, 01 Jan 2020 00:00:00 GMT"}, 1),
        (429, {"Retry-After": "soon"}, 60),
        (429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "99999999999"}, 86_400),
        (429, {}, 60),
    ],
)
def test_the_rest_is_as_long_as_the_headers_say_within_reason(
    outside: Outside, status: int, headers: dict[str, str], wait: float
) -> None:
    soon = int(time.time()) + 2000
    headers = {name: value.format(soon=soon) for name, value in headers.items()}
    outside.instead = broken("issues", status, headers, {})
    run()
    left = row("github:ana/one").not_before - datetime.now(UTC)
    assert timedelta(seconds=max(0, wait - 400)) - timedelta(seconds=60) < left <= timedelta(seconds=wait)


def test_a_run_that_dies_between_a_page_and_its_commit_loses_nothing(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.page = 2
    for number in range(1, 7):
        outside.issue("ana/one", number, 100 * number)
    write, written = ExternalItem.objects.bulk_create, []

    def die_at_the_second(*args: Any, **options: Any) -> Any:
        done = write(*args, **options)
        written.append(done)
        if len(written) == 2:
            raise SystemExit
        return done

    monkeypatch.setattr(ExternalItem.objects, "bulk_create", die_at_the_second)
    with pytest.raises(SystemExit):
        run()
    assert numbers() == [1, 2]
    assert row("github:ana/one").cursor == "2026-01-01T00:03:20Z"
    run()
    assert numbers() == [1, 2, 3, 4, 5, 6]


def test_a_run_that_was_overtaken_writes_nothing_more(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.issue("ana/one", 1, 100)

    def ask_while_another_run_begins(url: str, headers: dict[str, str]) -> web.Answer:
        answer = web.ask(url, headers)
        ExternalSource.objects.begin("github:ana/one", "")
        return answer

    monkeypatch.setattr(github, "ask", ask_while_another_run_begins)
    assert run()["sources"]["github:ana/one"] == {"overtaken": "another run reads it"}
    assert numbers() == []
    monkeypatch.undo()
    run()
    assert numbers() == [1]


# --- What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((502, {}, {}), "answered with status 502"),
        ((403, {}, {}), "answered with status 403"),
        ((404, {}, {"message": SECRETS[0]}), "answered with status 404"),
        ((301, {"Location": "https://127.0.0.1/elsewhere"}, {}), "a redirect (301), which is not followed"),
        ((200, {}, b"{not json"), "not JSON"),
        ((200, {}, b"[" * 200_000), "not JSON"),
        ((200, {}, b"\xff\xfe\xfd"), "not JSON"),
        ((200, {}, {"message": "x"}), "not a list"),
        ((200, {}, [{"number": 1}]), "no number or updated_at"),
        ((200, {}, [{"number": 1, "updated_at": "9999-12-31T23:59:59-20:00"}]), "no number or updated_at"),
        ((200, {}, b'[{"number": 1, "updated_at": "2026-01-01T00:00:00Z", "x": 1e999}]'), "cannot be stored"),
        (f"{SECRETS[0]} is no HTTP\r\n\r\n".encode(), "could not be read: BadStatusLine"),
        (b"", "could not be read"),
    ],
)
def test_a_source_that_fails_is_named_and_the_others_go_on(
    outside: Outside, settings: Settings, caplog: pytest.LogCaptureFixture, reply: Reply | bytes, says: str
) -> None:
    settings.EXTERNAL_GITHUB_REPOSITORIES = ["ana/one", "ana/two"]
    outside.issue("ana/two", 5, 100)
    outside.message("C01", 7)
    outside.instead = lambda question: reply if "ana/one" in question.path else None
    said = failed_run()
    assert said.startswith("1 of 3 sources failed: github:ana/one: ")
    assert says in said
    assert (numbers(), numbers("github:ana/two"), seconds()) == ([], [5], [7])
    assert says in row("github:ana/one").error
    for text in (said, caplog.text, row("github:ana/one").error):
        assert not any(secret in text for secret in SECRETS)

    outside.instead = lambda question: None
    run()
    assert row("github:ana/one").error == ""


def test_an_answer_may_neither_be_endless_nor_take_for_ever(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.issue("ana/one", 1, 100, "x" * 5000)
    monkeypatch.setattr(web, "LARGEST", 4000)
    assert "answered with more than 4000 bytes" in failed_run()
    monkeypatch.undo()
    monkeypatch.setattr(web, "PATIENCE", -1)
    assert "took more than -1 seconds" in failed_run()
    monkeypatch.undo()
    monkeypatch.setattr(web, "SILENCE", 0.1)
    outside.instead = lambda question: time.sleep(0.5)
    assert "could not be read: TimeoutError" in failed_run()


def test_a_service_that_is_not_there_is_a_failure(outside: Outside, settings: Settings) -> None:
    settings.GITHUB_API_URL = "http://127.0.0.1:1"
    assert "github:ana/one: could not be read: ConnectionRefusedError" in failed_run()


def test_what_postgresql_cannot_keep_is_replaced(outside: Outside) -> None:
    outside.issue("ana/one", 1, 100, "a\x00b\ud800c")
    run()
    assert stored("github:ana/one").get().document["title"] == "a\ufffdb?c"


def test_each_service_gets_its_own_secret_and_only_in_the_header(outside: Outside) -> None:
    run()
    [to_github], [to_slack] = asked(outside, "issues"), asked(outside, "history")
    assert to_github.headers["Authorization"] == f"Bearer {SECRETS[0]}"
    assert to_slack.headers["Authorization"] == f"Bearer {SECRETS[1]}"
    assert not any(secret in f"{to_github.query} {to_slack.query}" for secret in SECRETS)


# --- Slack --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gives_tokens", [True, False])
def test_all_messages_are_read_and_then_only_new_ones(outside: Outside, gives_tokens: bool) -> None:
    outside.page, outside.gives_tokens = 3, gives_tokens
    for second in range(1, 9):
        outside.message("C01", second)
    assert run()["sources"]["slack:C01"] == {"pages": 3, "items": 8}
    assert seconds() == list(range(1, 9))
    assert row("slack:C01").cursor == f"{JANUARY + 8}.000001"
    outside.message("C01", 9)
    assert run()["sources"]["slack:C01"] == {"pages": 1, "items": 1}
    assert run()["sources"]["slack:C01"] == {"pages": 1, "items": 0}
    assert seconds() == list(range(1, 10))


def test_the_cursor_of_a_channel_moves_only_when_the_walk_has_come_back_to_it(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slack, "PAGES", 2)
    outside.page = 2
    outside.message("C01", 1)
    run()
    before = row("slack:C01").cursor
    for second in range(2, 9):
        outside.message("C01", second)
    run()
    assert seconds() == [1, 5, 6, 7, 8]
    assert row("slack:C01").cursor == before
    outside.message("C01", 9)  # above the walk
    run()
    assert row("slack:C01").cursor == f"{JANUARY + 8}.000001"
    assert seconds() == [1, 2, 3, 4, 5, 6, 7, 8]
    run()
    assert seconds() == list(range(1, 10))


def test_a_walk_that_breaks_off_goes_on_where_it_was(outside: Outside) -> None:
    outside.page = 2
    for second in range(1, 9):
        outside.message("C01", second)

    def fail_at_the_third(question: Question) -> Reply | None:
        pages = [each for each in outside.asked if "history" in each.path]
        return (500, {}, {}) if "history" in question.path and len(pages) == 3 else None

    outside.instead = fail_at_the_third
    assert "slack:C01: answered with status 500" in failed_run()
    assert seconds() == [5, 6, 7, 8]
    outside.instead = lambda question: None
    assert run()["sources"]["slack:C01"] == {"pages": 2, "items": 4}
    assert seconds() == list(range(1, 9))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"ok": False, "error": "channel_not_found"}, "says channel_not_found"),
        ({"ok": False, "error": f"no {SECRETS[1]}"}, "says that it failed"),
        ({"ok": True}, "without a list of messages"),
        ([], "not an object"),
        ({"ok": True, "messages": [{"ts": "soon"}]}, "a message that has no ts"),
        ({"ok": True, "messages": [], "has_more": True}, "gives nothing older"),
    ],
)
def test_what_slack_refuses_is_named(outside: Outside, answer: Any, says: str) -> None:
    outside.instead = broken("history", 200, {}, answer)
    said = failed_run()
    assert says in said and SECRETS[1] not in said


@pytest.mark.parametrize(
    "reply", [(429, {"Retry-After": "30"}, {}), (200, {}, {"ok": False, "error": "ratelimited"})]
)
def test_slack_may_ask_for_a_rest(outside: Outside, reply: Reply) -> None:
    outside.instead = broken("history", *reply)
    assert "left alone" in run()["sources"]["slack:C01"]["waiting"]
    assert row("slack:C01").not_before is not None


# --- As a task, and in the admin ----------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_it(outside: Outside, platform: Any, eventually: Any) -> None:
    outside.issue("ana/one", 1, 100)
    platform.start_dispatcher()
    platform.start_worker(
        "1,1", EXTERNAL_GITHUB_REPOSITORIES="ana/one", GITHUB_API_URL=outside.url, GITHUB_TOKEN=SECRETS[0]
    )
    task = submit("external_sync", {})
    eventually(lambda: task.refresh_from_db() or task.state == "succeeded")
    assert task.result["sources"] == {"github:ana/one": {"pages": 1, "items": 1}}
    assert numbers() == [1]


@pytest.mark.parametrize(("role", "may_read"), [("viewer", False), ("operator", True)])
def test_who_may_look_may_do_no_more(outside: Outside, role: str, may_read: bool) -> None:
    """A source is for all who may look; what it says is for operators."""
    outside.issue("ana/one", 1, 100)
    run()
    call_command("setup_platform", verbosity=0)
    person = User.objects.create_user("ana", is_staff=True)
    person.groups.set(Group.objects.filter(name__in=["viewer", role]))
    client = Client()
    client.force_login(person)
    for place, pk, is_allowed in (
        ("externalsource", row("github:ana/one").pk, True),
        ("externalitem", ExternalItem.objects.get().pk, may_read),
    ):
        status = 200 if is_allowed else 403
        assert (b"github:ana/one" in client.get(f"/admin/tasks/{place}/").content) == is_allowed
        assert client.get(f"/admin/tasks/{place}/{pk}/change/").status_code == status
        assert client.post(f"/admin/tasks/{place}/{pk}/delete/").status_code == 403
