"""Beat: django-celery-beat's schedules, each due time settled once however many beats run."""

from __future__ import annotations

import heapq
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any

from celery.exceptions import ImproperlyConfigured
from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler
from kombu.exceptions import OperationalError as BrokerError

from capataz import handlers
from capataz.database import database_now
from capataz.lifecycle import due_times, scheduling
from capataz.lifecycle.scheduling import Rule, Settlement
from capataz.models import Schedule

AT_ONCE = 500  # schedules settled in one transaction
# Until a schedule is looked at again that another beat is settling, or whose task nobody here knows.
AGAIN = timedelta(seconds=1)
# Whoever changes schedules without Django's models tells nobody: they are read again this often.
READ_EVERY = 60.0  # seconds
# Between two looks at the least: what is due within it is settled in one go.
REST = 0.05  # seconds
# While plain tasks are being sent, how soon to see what became of them.
SENDS_WITHIN = 0.1  # seconds

_log = logging.getLogger(__name__)


class Scheduler(DatabaseScheduler):
    """Keeps the next due time of every schedule, and settles what is due by the database's clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._rules: dict[int, Rule] = {}
        self._fingerprints: dict[int, str] = {}
        # When each is looked at next, and its first due time that is not settled: the same, unless somebody
        # else was settling it.
        self._awaited: dict[int, tuple[datetime, datetime]] = {}
        # (due time, place, id). Among those that are due at once each beat has an order of its own, so that
        # two beats seldom want the same ones.
        self._agenda: list[tuple[datetime, int, int]] = []
        self._salt = random.getrandbits(32)
        self._read_at: float | None = None
        self._sender = PlainSender(self._send)
        super().__init__(*args, **kwargs)

    @property
    def schedule(self) -> dict[str, Any]:
        """Where Celery would keep its entries; ours are in the database and in the agenda."""
        return {}

    def setup_schedule(self) -> None:
        """Write the schedules that are declared in code; waits for a database that is away."""
        while True:
            try:
                super().setup_schedule()
                return
            except (OperationalError, InterfaceError) as error:
                _wait_for_the_database(error)

    def tick(self, *_: Any, **__: Any) -> float:
        """Settle what is due; returns the seconds until the next look."""
        try:
            if self._must_read():
                self._read()
            now, began = database_now(), time.monotonic()
            due = self._due(now)
            while chunk := list(islice(due, AT_ONCE)):
                self._settle(chunk, now)
            sent = self._sender.sent()
            self._conclude([each for each, _ in sent], {each.rule.id for each, ours in sent if ours}, now)
            return self._patience(now, time.monotonic() - began)
        # Of integrity: a periodic task was deleted just as its schedule was to be followed.
        except (OperationalError, InterfaceError, IntegrityError) as error:
            _wait_for_the_database(error)
            self._read_at = None  # what was being settled may be settled or not
            return 0.0

    def _patience(self, now: datetime, spent: float) -> float:
        most = float(self.max_interval)
        if self._sender.is_busy:
            most = min(most, SENDS_WITHIN)
        if not self._agenda:
            return most
        left = (self._agenda[0][0] - now).total_seconds() - spent
        return max(REST, min(most, left))

    # Reading.

    def _must_read(self) -> bool:
        changed = self.schedule_changed()
        return changed or self._read_at is None or time.monotonic() - self._read_at > READ_EVERY

    def _read(self) -> None:
        """Build anew what says something else than before, and see how far the others are settled."""
        everything, now = scheduling.read(), database_now()
        for gone in self._fingerprints.keys() - everything.keys():
            self._forget(gone)
        news = []
        for schedule, (fingerprint, last_due) in everything.items():
            if fingerprint != self._fingerprints.get(schedule) or last_due is None:
                news.append(schedule)
            elif (rule := self._rules.get(schedule)) is not None and (
                rule.last_due != last_due or schedule not in self._awaited
            ):
                self._expect(replace(rule, last_due=last_due))
        for start in range(0, len(news), AT_ONCE):
            self._meet(news[start : start + AT_ONCE], now)
        self._fingerprints = {schedule: fingerprint for schedule, (fingerprint, _) in everything.items()}
        self._read_at = time.monotonic()

    def _meet(self, ids: list[int], now: datetime) -> None:
        tasks = list(_periodic_tasks().filter(pk__in=ids))
        scheduling.meet(
            [task.pk for task in tasks],
            [_when(task) for task in tasks],
            [_since(task, now) for task in tasks],
        )
        ours = Schedule.objects.in_bulk(ids)
        built: dict[tuple[int | None, ...], Any] = {}  # equal schedules are built once
        for task in tasks:
            self._forget(task.pk)
            try:
                if task.enabled and task.pk in ours:  # or it was deleted just now
                    self._expect(_rule(task, ours[task.pk], built))
            # Of JSON, of a crontab, of its kind, or of a library that following the sun would need.
            except (ValueError, ImproperlyConfigured) as error:
                _log.error("schedule %s is not followed: %s", task.name, error)

    def _expect(self, rule: Rule) -> None:
        self._await(rule, rule.next_due())

    def _await(self, rule: Rule, due: datetime | None) -> None:
        self._rules[rule.id] = rule
        self._awaited.pop(rule.id, None)
        if due is not None:
            self._look_at(due, rule.id, due)

    def _look_at(self, when: datetime, schedule: int, due: datetime) -> None:
        self._awaited[schedule] = when, due
        heapq.heappush(self._agenda, (when, hash((schedule, self._salt)), schedule))

    def _forget(self, schedule: int) -> None:
        self._rules.pop(schedule, None)
        self._awaited.pop(schedule, None)

    # Settling.

    def _due(self, now: datetime) -> Iterator[Settlement]:
        while self._agenda and self._agenda[0][0] <= now:
            when, _, schedule = heapq.heappop(self._agenda)
            if self._awaited.get(schedule, (None,))[0] != when:
                continue  # it is awaited at another time by now
            _, due = self._awaited.pop(schedule)
            if (settlement := self._rules[schedule].settle(now, due)) is not None:
                yield settlement

    def _settle(self, settlements: Sequence[Settlement], now: datetime) -> None:
        of_handlers = [each for each in settlements if handlers.is_registered(each.rule.type)]
        for each in settlements:
            if not handlers.is_registered(each.rule.type):
                self._sender.send(each)
        if of_handlers:
            self._conclude(of_handlers, scheduling.settle(of_handlers), now)

    def _conclude(self, settlements: Sequence[Settlement], ours: set[int], now: datetime) -> None:
        """Go on with the next due times of those that were ours to settle; see how far others have settled
        the rest. What has been read anew since then is not what was settled, and goes on by itself."""
        settlements = [each for each in settlements if self._rules.get(each.rule.id) is each.rule]
        for each in settlements:
            if each.rule.id in ours and each.rule.one_off:
                self._forget(each.rule.id)
            elif each.rule.id in ours:
                self._await(replace(each.rule, last_due=each.mark), each.following)
        others = {each.rule.id: each for each in settlements if each.rule.id not in ours}
        marks = scheduling.marks(list(others)) if others else {}
        for schedule, other in others.items():
            if schedule not in marks:
                self._forget(schedule)
            elif marks[schedule] != other.rule.last_due:
                self._expect(replace(other.rule, last_due=marks[schedule]))
            else:
                self._look_at(now + AGAIN, schedule, other.first)

    def _send(self, settlement: Settlement) -> bool:
        """Send a plain task for each of these due times; whether they were ours to settle.

        Sent before the commit: a crash in between sends it again, never not at all. Raises OSError or kombu's
        OperationalError for a broker that is away.
        """
        rule = settlement.rule
        headers = {**rule.options["headers"], "periodic_task_name": rule.name}
        task = self.app.tasks.get(rule.type)
        if task is None:
            _log.error("schedule %s waits: no task is registered here as %r", rule.name, rule.type)
            return False
        with transaction.atomic():
            mine = scheduling.mark([settlement])
            for _ in settlement.dues if mine else ():
                _apply(task, rule, headers)
        return bool(mine)


class PlainSender:
    """Sends in a thread of its own: a broker that does not answer holds up plain tasks, and nothing else."""

    def __init__(self, send: Callable[[Settlement], bool]) -> None:
        self._send = send
        self._wanted: SimpleQueue[Settlement] = SimpleQueue()
        self._sent: SimpleQueue[tuple[Settlement, bool]] = SimpleQueue()
        self._under_way = 0
        self._thread: Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is something of which ``sent`` has not told yet."""
        return self._under_way > 0

    def send(self, settlement: Settlement) -> None:
        """Have this sent as soon as all before it is."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="plain-sender", daemon=True)
            self._thread.start()
        self._under_way += 1
        self._wanted.put(settlement)

    def sent(self) -> list[tuple[Settlement, bool]]:
        """What has become of what was to be sent: each settlement, and whether it was ours to settle."""
        told = [self._sent.get() for _ in range(self._sent.qsize())]
        self._under_way -= len(told)
        return told

    def _run(self) -> None:
        while True:
            settlement = self._wanted.get()
            was_ours = False
            try:
                was_ours = self._send(settlement)
            except (BrokerError, OSError) as error:
                _log.error("schedule %s waits for the broker: %s", settlement.rule.name, error)
                while not self._wanted.empty():  # nor would it answer for these
                    self._sent.put((self._wanted.get(), False))
            except (OperationalError, InterfaceError) as error:
                _log.warning("schedule %s waits for the database: %s", settlement.rule.name, error)
            except Exception:
                _log.exception("schedule %s could not be sent", settlement.rule.name)
            if self._wanted.empty():
                connection.close()
            self._sent.put((settlement, was_ours))


def _apply(task: Any, rule: Rule, headers: dict[str, Any]) -> None:
    """Send it. What is no fault of the broker is one of the schedule, and holds no other one up."""
    try:
        task.apply_async(rule.args, rule.kwargs, **{**rule.options, "headers": headers})
    except (BrokerError, OSError):
        raise
    except Exception as error:
        scheduling.refuse(rule, error)


def _periodic_tasks() -> QuerySet[PeriodicTask]:
    tasks: QuerySet[PeriodicTask] = PeriodicTask.objects.all()
    return tasks.select_related("interval", "crontab", "clocked", "solar")


def _when(task: PeriodicTask) -> str:
    """Everything that decides when a schedule is due, as text."""
    return f"{'on' if task.enabled else 'off'}: {task.scheduler} from {task.start_time}"


def _since(task: PeriodicTask, now: datetime) -> datetime:
    """From when on a schedule that is new, or has another rule now, is followed."""
    begins: datetime | None = task.start_time
    if task.clocked is not None:
        begins = task.clocked.clocked_time
    elif begins is None or begins < now:
        return now
    assert begins is not None
    return begins - timedelta(microseconds=1)


def _rule(task: PeriodicTask, ours: Schedule, built: dict[tuple[int | None, ...], Any]) -> Rule:
    """``built`` holds what has been built already of the rows that say when."""
    assert ours.last_due is not None
    row = (task.crontab_id, task.interval_id, task.clocked_id, task.solar_id)
    if row not in built:
        built[row] = task.schedule
    given = {name: getattr(task, name) for name in ("queue", "exchange", "routing_key", "priority")}
    options = {name: value for name, value in given.items() if value is not None}
    options["headers"] = _of_kind(dict, "headers", task.headers)
    if task.expires_ is not None:
        options["expires"] = task.expires_
    return Rule(
        id=task.pk,
        name=task.name,
        type=task.task,
        args=_of_kind(list, "args", task.args),
        kwargs=_of_kind(dict, "kwargs", task.kwargs),
        options=options,
        schedule=built[row],
        last_due=ours.last_due,
        anchor=task.start_time or due_times.EPOCH,
        ends=task.expires,
        expire_seconds=task.expire_seconds,
        one_off=task.one_off,
        missed=ours.missed,
        missed_limit=ours.missed_limit,
        overlap=ours.overlap,
    )


def _of_kind(kind: type[Any], name: str, text: str | None) -> Any:
    """The JSON in this field. Raises ValueError if it is something else than a list or an object."""
    value = json.loads(text) if text else kind()
    if not isinstance(value, kind):
        needed = "array" if kind is list else "object"
        raise ValueError(f"{name} must be a JSON {needed}, not {str(text)[:50]!r}")
    return value


def _wait_for_the_database(error: Exception) -> None:
    _log.warning("beat waits for the database: %s", error)
    connection.close()
    time.sleep(1)
