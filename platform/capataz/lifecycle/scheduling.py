"""Scheduling: submitting the tasks of schedules that are due, exactly one for each due time.

A schedule has a mark, the last due time that is settled. Whoever moves it on, from the mark it has seen,
submits in the same transaction for what lies in between. Only the database's clock counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
from django.db import DatabaseError, transaction
from django.db.models import Count, Q

from capataz import database, handlers
from capataz.errors import Conflict
from capataz.lifecycle import due_times, notes, submission
from capataz.lifecycle.submission import Submission
from capataz.models import Schedule, Task
from capataz.models.schedule import Missed, Overlap
from capataz.sql import statement
from capataz.states import HELD

# Due times that are this old at the most are late: each is submitted for. If any is older, there was a
# downtime, and the schedule's own policy says what becomes of all that is due.
LATE = timedelta(seconds=60)
MOST_LATE = 1000  # due times of one schedule settled at once

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """One schedule as a beat has read it: when, what and how. ``last_due`` is the mark that it has seen."""

    id: int
    name: str
    type: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    schedule: Any
    last_due: datetime
    anchor: datetime = due_times.EPOCH
    ends: datetime | None = None
    expire_seconds: int | None = None
    one_off: bool = False
    missed: str = Missed.ONCE
    missed_limit: int = 100
    overlap: str = Overlap.ALLOW

    def next_due(self) -> datetime | None:
        """The first due time that is not settled; None if no other comes.

        Raises Unschedulable.
        """
        return self._due_after(self.last_due)

    def settle(self, now: datetime, first: datetime | None = None) -> Settlement | None:
        """What is to be done about the due times up to ``now``; None if there is none.

        ``first`` is the first one that is not settled, if the caller knows it already.
        """
        first = first or self.next_due()
        if first is None or first > now:
            return None
        was_down = now - first > LATE
        dues, following = [first], self._due_after(first)
        if following is not None and following <= now:
            most_missed = self.missed_limit if self.missed == Missed.ALL else 1
            most = most_missed if was_down else MOST_LATE
            until = now if self.ends is None else min(now, self.ends - timedelta(microseconds=1))
            dues = due_times.latest_dues(self.schedule, self.last_due, until, most=most, anchor=self.anchor)
            following = self._due_after(dues[-1])
        mark = dues[-1]
        if was_down and self.missed == Missed.SKIP:
            dues = [due for due in dues if now - due <= LATE]
        return Settlement(self, dues, mark, first, following)

    def _due_after(self, moment: datetime) -> datetime | None:
        due = due_times.next_due(self.schedule, moment, anchor=self.anchor)
        return None if due is None or (self.ends is not None and due >= self.ends) else due


@dataclass(frozen=True)
class Settlement:
    """The due times that a schedule is to be submitted for, and the mark that settles them.

    ``first`` is the first one that was not settled, ``following`` the first that then is not.
    """

    rule: Rule
    dues: Sequence[datetime]
    mark: datetime
    first: datetime
    following: datetime | None


def settle(settlements: Sequence[Settlement]) -> set[int]:
    """Submit for these due times and move the marks on, or neither; returns the ids of the schedules that
    were ours to settle. The others have been settled by another beat, or are just now.

    A task that is refused (its payload no longer fits, say) is an event, and its due time is settled.
    """
    with transaction.atomic():
        mine = mark(settlements)
        settled = [each for each in settlements if each.rule.id in mine]
        unfinished = _unfinished(each.rule.id for each in settled if each.rule.overlap != Overlap.ALLOW)
        _submit(
            [(each.rule, _without_overlaps(each, *unfinished.get(each.rule.id, (0, 0)))) for each in settled]
        )
    return mine


def mark(settlements: Sequence[Settlement]) -> set[int]:
    """Move these marks on, within the caller's transaction; returns the ids of the schedules whose mark was
    the one that had been seen, and that nobody else is moving just now."""
    columns = {
        "ids": [each.rule.id for each in settlements],
        "seen": [each.rule.last_due for each in settlements],
        "marks": [each.mark for each in settlements],
        "runs": [bool(each.dues) for each in settlements],
    }
    with psycopg.Cursor(database.driver()) as cursor:
        return {row[0] for row in cursor.execute(statement("mark_schedules"), columns)}


def marks(ids: Sequence[int]) -> dict[int, datetime]:
    """How far these schedules are settled."""
    rows = Schedule.objects.filter(pk__in=ids).values_list("pk", "last_due")
    return {schedule: last_due for schedule, last_due in rows if last_due is not None}


def read() -> dict[int, tuple[str, datetime | None]]:
    """(a fingerprint of what it says, how far it is settled) of every schedule."""
    with psycopg.Cursor(database.driver()) as cursor:
        cursor.execute(statement("add_schedules"))
        rows = cursor.execute(statement("read_schedules"))
        return {schedule: (fingerprint, last_due) for schedule, fingerprint, last_due in rows}


def meet(ids: Sequence[int], rules: Sequence[str], since: Sequence[datetime]) -> None:
    """Begin to follow these schedules from these times on, unless somebody follows this very rule already."""
    with psycopg.Cursor(database.driver()) as cursor:
        cursor.execute(
            statement("meet_schedules"), {"ids": list(ids), "rules": list(rules), "since": list(since)}
        )


def _unfinished(ids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """(unfinished tasks, those of them that wait) of each of these schedules."""
    tasks = Task.objects.filter(schedule_id__in=list(ids), finished_at__isnull=True)
    counted = tasks.values_list("schedule_id").annotate(
        all=Count("pk"), waiting=Count("pk", filter=~Q(state__in=HELD))
    )
    return {schedule: (count, waiting) for schedule, count, waiting in counted.order_by()}


def _without_overlaps(settlement: Settlement, unfinished: int, waiting: int) -> Sequence[datetime]:
    rule, dues = settlement.rule, settlement.dues
    if rule.overlap == Overlap.ALLOW:
        return dues
    room = int(unfinished == 0) if rule.overlap == Overlap.SKIP else int(waiting == 0)
    # What fits best is the newest: it does the work of those before it.
    kept, left_out = dues[len(dues) - room :], dues[: len(dues) - room]
    if left_out:
        notes.tell(
            "schedule.overlapped", subject=rule.name, leftOut=len(left_out), newest=left_out[-1].isoformat()
        )
    return kept


def _submit(wanted: Sequence[tuple[Rule, Sequence[datetime]]]) -> None:
    """Submit for all of these at once; where one is refused, for each alone."""
    try:
        submission.submit_many([_submission(rule, due) for rule, dues in wanted for due in dues])
    except DatabaseError:
        raise
    except Exception as error:  # a handler's own validation may raise whatever it likes
        if len(wanted) > 1:
            for each in wanted:
                _submit([each])
            return
        [(rule, dues)] = wanted
        if isinstance(error, Conflict) and len(dues) > 1:  # they may be in the way of each other
            for due in dues:
                _submit([(rule, [due])])
            return
        refuse(rule, error)


def refuse(rule: Rule, error: Exception) -> None:
    """Say that a due time of this schedule passes without its task, and why."""
    _log.error("schedule %s: its task is refused: %s", rule.name, error)
    notes.tell("schedule.refused", subject=rule.name, error=str(error)[:500])


def _submission(rule: Rule, due: datetime) -> Submission:
    expires = rule.expire_seconds
    options = {name: value for name, value in rule.options.items() if expires is None or name != "expires"}
    asked = submission.asked_by_celery(handlers.find(rule.type), rule.args, rule.kwargs, options)
    return replace(
        asked,
        expires_at=asked.expires_at if expires is None else due + timedelta(seconds=expires),
        schedule_id=rule.id,
        submitted_by=f"schedule {rule.name}"[:100],
    )
