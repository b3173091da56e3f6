"""What a handler logs is kept with its attempt: all of it, in order, also of one that died."""

import logging

import pytest

from capataz.handlers import RunningTask
from capataz.lifecycle.submission import submit
from capataz.models import Attempt, LogLine, Task
from capataz.worker import capture
from capataz.worker.capture import Capture

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run(platform, eventually):
    """Have a worker run tasks that talk; returns their lines, once all have ended."""

    def ended(*payloads, **options):
        tasks = [submit("testing.talk", payload, **options) for payload in payloads]
        platform.start_worker("1,1"), platform.start_dispatcher()
        eventually(lambda: not Task.objects.filter(finished_at=None).exists())
        return [list(LogLine.objects.filter(task_id=task.pk)) for task in tasks]

    return ended


def test_lines_are_kept_by_attempt_whatever_came_of_it(run):
    well, badly, dead, chatty = run(
        {"password": "hunter2-canary"}, {"then": "fail"}, {"then": "die"}, {"lines": 1500, "text": "x" * 100}
    )
    assert [(line.level, line.logger, line.message) for line in well] == [
        (logging.DEBUG, "capataz.task", "hello 0"),
        (logging.INFO, "tests.workload", "said by tests.workload, with [masked]"),
        (logging.WARNING, "some.library", "beware"),
    ]
    assert "Traceback" not in badly[0].message and badly[-1].message.startswith("an exception x")
    assert {line.run for line in badly} == set(
        Attempt.objects.filter(task_id=badly[0].task_id).values_list("run", flat=True)
    )
    assert len(dead) == 9 and len({line.run for line in dead}) == 3  # it died three times
    assert len(chatty) == capture.LINES and chatty[-1].message == capture.NO_MORE


def test_a_log_has_a_budget_of_characters(monkeypatch):
    monkeypatch.setattr(capture, "CHARACTERS", 10)
    kept, log = [], Capture()
    with log.during(lambda *line: kept.append(line[2]), str):
        for text in ("12345", "12345", "1", "2"):
            log.keep(logging.INFO, "x", text)
    assert kept == ["12345", "12345", capture.NO_MORE]


def test_outside_of_a_task_and_for_what_cannot_be_formatted_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    kept, log = [], Capture()
    log.keep(logging.INFO, "x", "before")
    with log.during(lambda *line: kept.append(line), str):
        log.emit(logging.LogRecord("x", logging.INFO, "f", 1, "%d", ("text",), None))
        log.keep(logging.INFO, "n" * 200, "nul \x00")
    log.keep(logging.INFO, "x", "after")
    [(_, logger, message)] = kept
    assert len(logger) == 100 and message == "nul \ufffd"


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level must be one of debug, info"):
        RunningTask(None, "x", 1, 1).log("x", level="loud")
