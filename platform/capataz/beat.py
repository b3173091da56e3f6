"""Beat: django-celery-beat's schedules, each due time settled once however many beats run."""

from __future__ import annotations

import heapq
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from celery.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler
from kombu.exceptions import OperationalError as BrokerError

from capataz import handlers
from capataz.lifecycle import due_times, scheduling
from capataz.lifecycle.scheduling import Rule, Settlement
from capataz.models import Schedule

AT_ONCE = 500  # schedules settled in one transaction
# Until a schedule is looked at again that another beat is settling, or whose task nobody here knows.
AGAIN = timedelta(seconds=1)
# Whoever changes schedules without Django's models tells nobody: they are read again this often.
READ_EVERY = 60.0  # seconds

_log = logging.getLogger(__name__)


class Scheduler(DatabaseScheduler):
    """Keeps the next due time of every schedule, and settles what is due by the database's clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._rules: dict[int, Rule] = {}
        self._agenda: list[tuple[datetime, int]] = []
        self._read_at: float | None = None
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
            now, began = scheduling.database_now(), time.monotonic()
            due = list(self._due(now))
            for start in range(0, len(due), AT_ONCE):
                self._settle(due[start : start + AT_ONCE], now)
            return self._patience(now, time.monotonic() - began)
        except (OperationalError, InterfaceError) as error:
            _wait_for_the_database(error)
            self._read_at = None
            return 0.0

    def _patience(self, now: datetime, spent: float) -> float:
        if not self._agenda:
            return float(self.max_interval)
        left = (self._agenda[0][0] - now).total_seconds() - spent
        return max(0.0, min(float(self.max_interval), left))

    # Reading.

    def _must_read(self) -> bool:
        changed = self.schedule_changed()
        return changed or self._read_at is None or time.monotonic() - self._read_at > READ_EVERY

    def _read(self) -> None:
        everything, now = list(_periodic_tasks()), scheduling.database_now()
        scheduling.meet(
            [task.pk for task in everything],
            [_when(task) for task in everything],
            [_since(task, now) for task in everything],
        )
        self._rules, self._agenda = {}, []
        self._follow(_periodic_tasks())
        self._read_at = time.monotonic()

    def _follow(self, tasks: Iterable[PeriodicTask]) -> None:
        for task in tasks:
            self._rules.pop(task.pk, None)
            try:
                if task.enabled:
                    self._expect(_rule(task))
            # Of JSON, of a crontab, of its kind, or of a library that following the sun would need.
            except (ValueError, ImproperlyConfigured) as error:
                _log.error("schedule %s is not followed: %s", task.name, error)
            except Schedule.DoesNotExist:
                pass  # made since we met the others: its making has us read again

    def _expect(self, rule: Rule) -> None:
        self._rules[rule.id] = rule
        if (due := rule.next_due()) is not None:
            heapq.heappush(self._agenda, (due, rule.id))

    # Settling.

    def _due(self, now: datetime) -> Iterator[Settlement]:
        while self._agenda and self._agenda[0][0] <= now:
            _, rule_id = heapq.heappop(self._agenda)
            rule = self._rules.get(rule_id)
            if rule is not None and (settlement := rule.settle(now)) is not None:
                yield settlement

    def _settle(self, settlements: Sequence[Settlement], now: datetime) -> None:
        of_handlers = [each for each in settlements if handlers.is_registered(each.rule.type)]
        of_plain_tasks = [each for each in settlements if not handlers.is_registered(each.rule.type)]
        settled = scheduling.settle(of_handlers) if of_handlers else set()
        settled |= {each.rule.id for each in of_plain_tasks if self._send(each)}
        for each in settlements:
            if each.rule.id not in settled:
                continue
            if each.rule.one_off:
                del self._rules[each.rule.id]
            else:
                self._expect(replace(each.rule, last_due=each.mark))
        self._look_again([each for each in settlements if each.rule.id not in settled], now)

    def _look_again(self, settlements: Sequence[Settlement], now: datetime) -> None:
        """These were not ours to settle: see how far others have settled them."""
        if not settlements:
            return
        seen = {each.rule.id: each.rule.last_due for each in settlements}
        moved = list(_periodic_tasks().filter(pk__in=seen))
        self._follow(task for task in moved if task.capataz.last_due != seen[task.pk])
        for task in moved:
            if task.capataz.last_due == seen[task.pk]:
                heapq.heappush(self._agenda, (now + AGAIN, task.pk))

    def _send(self, settlement: Settlement) -> bool:
        """Send a plain task for each of these due times; whether they were ours to settle.

        Sent before the commit: a crash in between sends it again, never not at all.
        """
        rule = settlement.rule
        headers = {**rule.options["headers"], "periodic_task_name": rule.name}
        task = self.app.tasks.get(rule.type)
        if task is None:
            _log.error("schedule %s waits: no task is registered here as %r", rule.name, rule.type)
            return False
        try:
            with transaction.atomic():
                mine = scheduling.mark([settlement])
                for _ in settlement.dues if mine else ():
                    _apply(task, rule, headers)
            return bool(mine)
        except (BrokerError, OSError) as error:
            _log.error("schedule %s waits for the broker: %s", rule.name, error)
            return False


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
    return tasks.select_related("interval", "crontab", "clocked", "solar", "capataz")


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


def _rule(task: PeriodicTask) -> Rule:
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
        schedule=task.schedule,
        last_due=task.capataz.last_due,
        anchor=task.start_time or due_times.EPOCH,
        ends=task.expires,
        expire_seconds=task.expire_seconds,
        one_off=task.one_off,
        missed=task.capataz.missed,
        missed_limit=task.capataz.missed_limit,
        overlap=task.capataz.overlap,
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
