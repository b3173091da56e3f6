"""Inside a pool child: run the tasks of a bundle one after the other, reporting each as it ends."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
import traceback as tracebacks
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billiard.common import terminate_handler_fired
from billiard.compat import mem_rss
from celery import current_app, signals
from celery._state import _task_stack
from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry
from django.conf import settings
from django.db import connections
from pydantic import ValidationError

from capataz import circuits, jsontext, sensitive
from capataz.errors import (
    CannotDecrypt,
    CircuitOpen,
    Discard,
    Discarded,
    RetryIn,
    Snoozed,
    SoftTimeLimitExceeded,
    TaskCancelled,
    Verdict,
)
from capataz.handlers import Handler, RunningTask, find
from capataz.lifecycle import parents, workflows
from capataz.policy import asked_wait
from capataz.worker import coroutines, durable_task
from capataz.worker.capture import Capture
from capataz.worker.channel import Channel


@dataclass
class Wear:
    """After how many tasks, and from how many KiB resident, a child is replaced; None for never.

    billiard looks at its own limits only between two jobs, and to it a bundle is one job.
    """

    most_tasks: int | None = None
    most_memory: int | None = None
    tasks: int = 0

    def is_worn_out(self) -> bool:
        """Whether this child should leave what is left of its bundle to others, and go."""
        if not self.tasks:  # a limit below what every child needs must not keep all of them from working
            return False
        if self.most_tasks is not None and self.tasks >= self.most_tasks:
            return True
        return self.most_memory is not None and mem_rss() > self.most_memory


STEP, PROGRESS, LOG = "step", "progress", "log"
SUCCEEDED, FAILED, INTERRUPTED, SNOOZED = "succeeded", "failed", "interrupted", "snoozed"
# Failed in a way that says nothing about the circuit of its type; not tried, because a circuit is open.
EXCUSED, HELD_OFF = "excused", "held_off"

_VERDICTS = {RetryIn: "to be tried again in {:g} s", Snoozed: "snoozed for {:g} s", Discarded: "discarded"}

PR_SET_PDEATHSIG = 1  # prctl(2)

ERROR_LENGTH = 2_000
TRACEBACK_LENGTH = 20_000

_channel: Channel | None = None
_wear = Wear()
_capture = Capture()
_task_log = logging.getLogger("capataz.task")
_interruptible = False
_running: RunningTask | None = None
_cancel_grace = 0.0


def attach(channel: Channel, wear: Wear) -> None:
    """Remember the parent's channel and what a child bears, for every child forked from now on."""
    global _channel, _wear
    _channel, _wear = channel, wear


def prepare() -> None:
    """Make a fresh child ready: its own process group, first in line for the OOM killer, our signals."""
    if _channel is not None:
        _channel.reports.close_parents_end()
    os.setpgid(0, 0)
    _die_with_parent()
    _raise_oom_score(500)
    root = logging.getLogger()
    for each in root.handlers:
        each.addFilter(_capture.mask)
    root.addHandler(_capture)
    signal.signal(signal.SIGALRM, _on_timer)
    signal.signal(signal.SIGUSR2, _on_cancel)


def _die_with_parent() -> None:
    """Nobody would hear of what a child of a dead parent does, and its tasks are run elsewhere."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we had asked
        os._exit(os.EX_UNAVAILABLE)


def run_bundle(pipe: int, serial: int, task_type: str, items: list[tuple[Any, ...]]) -> None:
    """Run every task of the bundle that nobody takes back, until this child is worn out.

    Each item is (id, payload, attempt, starts, soft time limit, whether it is part of a workflow). Raises
    SystemExit, which ends the child, once it is worn out: what is left of the bundle is taken back by the
    parent.
    """
    assert _channel is not None
    pid = os.getpid()
    tokens, reports = _channel.tokens[pipe], _channel.reports
    handler = find(task_type)
    ended: tuple[Any, ...] | None = None
    while not (worn_out := _wear.is_worn_out()) and (index := tokens.take(serial)) is not None:
        reports.send((STEP, pid, serial, ended, (index, time.monotonic())))
        ended = (index, *_outcome(handler, serial, index, items[index]), time.monotonic())
        _wear.tasks += 1
    reports.send((STEP, pid, serial, ended, None))
    if worn_out:
        sys.exit()


def _outcome(handler: Handler[Any], serial: int, index: int, item: tuple[Any, ...]) -> tuple[Any, ...]:
    def report_progress(percent: int, message: str) -> None:
        _report_progress(serial, index, percent, message)

    try:
        with _captured(handler, serial, index, item):
            return outcome(handler, item, report_progress)
    finally:
        _leave_no_transaction()


def outcome(
    handler: Handler[Any], item: tuple[Any, ...], report_progress: Callable[[int, str], None]
) -> tuple[Any, ...]:
    """(how it ended, result, error, traceback, retryable, seconds to wait) of one task. Never raises."""
    try:
        with _interruptions(item[4]):
            value = _call(handler, item, report_progress)
    except BaseException as error:
        if terminate_handler_fired():
            _die_of_sigterm()
        return _failure(handler, error, _scrubber(handler, item), item[2])
    try:
        text = jsontext.dumps(value, limit=settings.MAX_RESULT)
        result = sensitive.seal(text, handler.sensitive, sensitive.RESULT, uuid.UUID(bytes=item[0]))
        return SUCCEEDED, result, None, None, True, None
    except ValueError as error:
        return FAILED, None, f"the result cannot be stored: {error}", None, True, None


def _call(handler: Handler[Any], item: tuple[Any, ...], report_progress: Callable[[int, str], None]) -> Any:
    task_id, payload, attempt, starts, _, in_workflow = item
    running = RunningTask(
        id=uuid.UUID(bytes=task_id),
        type=handler.name,
        attempt=attempt,
        starts=starts,
        report_progress=report_progress,
        report_log=_report_log,
        enter_circuit=circuits.circuit,
        add_task=lambda type, data, **options: workflows.add_to(running, type, data, **options),
    )
    if in_workflow:
        running.find_parents = lambda: parents.of(running.id)
    global _running, _cancel_grace
    _running, _cancel_grace = running, handler.cancel_grace
    data = sensitive.opened_text(payload, sensitive.PAYLOAD, running.id)
    if in_workflow:
        data = parents.fed(handler, data, running)
    with _celery_context(handler, running, data) as context:
        context["retval"] = coroutines.finished(handler.function(running, handler.load(data)))
        context["state"] = "SUCCESS"
    return context["retval"]


@contextmanager
def _celery_context(
    handler: Handler[Any], running: RunningTask, payload: str | bytes
) -> Iterator[dict[str, Any]]:
    """Celery's own signals and ``current_task``, so that what hooks into them works unchanged."""
    task = current_app.tasks[handler.name]
    request = task.context_of(running, payload)
    about = {"task_id": request.id, "task": task, "args": request.args, "kwargs": request.kwargs}
    _task_stack.push(task)
    task.request_stack.push(request)
    context: dict[str, Any] = {"retval": None, "state": "FAILURE"}
    try:
        signals.task_prerun.send(sender=task, **about)
        try:
            yield context
        except CeleryRetry as error:
            context["state"] = "RETRY"
            signals.task_retry.send(sender=task, request=request, reason=error, einfo=None)
            raise
        except (Ignore, Reject) as error:
            context["state"] = "REJECTED" if isinstance(error, Reject) else "IGNORED"
            raise
        except Exception as error:
            signals.task_failure.send(
                sender=task, exception=error, traceback=error.__traceback__, einfo=None, **about
            )
            raise
        else:
            signals.task_success.send(sender=task, result=context["retval"])
        finally:
            signals.task_postrun.send(sender=task, **about, **context)
    finally:
        task.pop_request()
        _task_stack.pop()


def _failure(
    handler: Handler[Any], error: BaseException, scrub: Callable[[str], str], failures: int
) -> tuple[Any, ...]:
    if isinstance(error, CircuitOpen):
        return HELD_OFF, None, str(error), None, True, error.retry_after
    said = _describe(error.exc if isinstance(error, CeleryRetry) and error.exc is not None else error)
    lines = "".join(tracebacks.format_exception(error, limit=-30))
    for each in _with_causes(error):
        if isinstance(each, ValidationError):  # its own text has shortened values in it
            lines = lines.replace(str(each), _describe(each))
    text = jsontext.printable(scrub(said), ERROR_LENGTH)
    retryable, delay = _again(handler, error, failures)
    if isinstance(error, Verdict):  # nothing went wrong: where it was said is of no interest
        return SNOOZED if isinstance(error, Snoozed) else FAILED, None, text, None, retryable, delay
    how = _how(error, handler)
    return how, None, text, jsontext.printable(scrub(lines), TRACEBACK_LENGTH), retryable, delay


def _again(handler: Handler[Any], error: BaseException, failures: int) -> tuple[bool, float | None]:
    """(whether this failure is worth another attempt, the seconds to wait if it says so itself).

    What the handler has decided comes first, then whether its rule for this class lets it be tried again,
    then what the exception asks for, and then how long the rule waits.
    """
    if isinstance(error, Verdict):
        return not isinstance(error, Discarded), error.seconds
    if handler.is_durable:  # what was written for Celery is tried again only if it asks for it
        wait = durable_task.waits(error)
        return wait is not None, wait
    rule = handler.retry.rule_for(error)
    if isinstance(error, Discard) or (rule is not None and not rule.allows(failures)):
        return False, None
    asked = asked_wait(error)
    if asked is None and rule is not None:
        asked = rule.delay(failures).total_seconds()
    return True, asked


def _how(error: BaseException, handler: Handler[Any]) -> str:
    if isinstance(error, TaskCancelled):
        return INTERRUPTED
    if handler.circuit is not None and isinstance(error, handler.circuit.ignore):
        return EXCUSED
    return FAILED


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that a traceback shows before it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _describe(error: BaseException) -> str:
    if isinstance(error, SoftTimeLimitExceeded):
        return str(error)
    try:
        if isinstance(error, Verdict):
            return _VERDICTS[type(error)].format(error.seconds) + (f": {error}" if str(error) else "")
        if isinstance(error, ValidationError):
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in faults)
            return f"{type(error).__name__}: {said}"
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (its text cannot be shown)"


def _scrubber(handler: Handler[Any], item: tuple[Any, ...]) -> Callable[[str], str]:
    """Takes the secrets of this task's payload out of what is said about its failure."""
    try:
        payload = json.loads(sensitive.opened_text(item[1], sensitive.PAYLOAD, uuid.UUID(bytes=item[0])))
    except (CannotDecrypt, ValueError):  # then the handler has not seen any either
        return lambda text: text
    return sensitive.scrubber(payload, handler.sensitive)


def _report_progress(serial: int, index: int, percent: int, message: str) -> None:
    assert _channel is not None
    _channel.reports.send((PROGRESS, os.getpid(), serial, index, percent, jsontext.printable(message, 200)))


def _report_log(level: int, message: str) -> None:
    _capture.keep(level, _task_log.name, message)
    _task_log.log(level, "%s", message, extra={"is_kept": True})


@contextmanager
def _captured(handler: Handler[Any], serial: int, index: int, item: tuple[Any, ...]) -> Iterator[None]:
    """Report what is logged inside."""
    scrub: Callable[[str], str] | None = None

    def scrubbed(text: str) -> str:
        nonlocal scrub
        scrub = scrub or _scrubber(handler, item)
        return scrub(text)

    def send(level: int, logger: str, message: str) -> None:
        assert _channel is not None
        _channel.reports.send((LOG, os.getpid(), serial, index, time.monotonic(), level, logger, message))

    with _capture.during(send, scrubbed):
        yield


@contextmanager
def _interruptions(soft_time_limit: float | None) -> Iterator[None]:
    """Let the soft limit and a cancel raise inside, and only inside."""
    global _interruptible, _running
    _interruptible = True
    if soft_time_limit:
        signal.setitimer(signal.ITIMER_REAL, soft_time_limit)
    try:
        yield
    finally:
        _interruptible, _running = False, None
        signal.setitimer(signal.ITIMER_REAL, 0)


def _on_timer(*_: Any) -> None:
    """The soft limit has passed, or the grace of a task that was cancelled."""
    if _interruptible:
        if _running is not None and _running.cancelled:
            _running.stop_if_cancelled()
        raise SoftTimeLimitExceeded("soft time limit exceeded")


def _on_cancel(*_: Any) -> None:
    if not _interruptible:
        return
    if _running is None:  # its function has not been called yet
        raise TaskCancelled("the task was cancelled while it ran")
    if _running.cancelled:
        return
    _running.cancelled = True
    if not _cancel_grace:
        _running.stop_if_cancelled()
    left = signal.getitimer(signal.ITIMER_REAL)[0]  # of the soft limit
    signal.setitimer(signal.ITIMER_REAL, min(_cancel_grace, left) if left else _cancel_grace)


def _die_of_sigterm() -> None:
    """Somebody asked this process to end, and billiard raised SystemExit in the handler: not its failure.

    The parent sees the signal, and tells a loss from its own stop.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_no_transaction() -> None:
    """A handler that left a transaction open, or a broken connection, must not harm the next task."""
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block or connection.errors_occurred:
            connection.close()
        else:
            connection.close_if_unusable_or_obsolete()


def _raise_oom_score(score: int) -> None:
    # Where that is not permitted, the parent is no safer than its children.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))
