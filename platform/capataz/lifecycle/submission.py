"""Submission: putting tasks into PostgreSQL, in the caller's own transaction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Any

import psycopg
from django.conf import settings
from django.db import transaction

from capataz import database, handlers, policy, sensitive, uniqueness
from capataz import priority as priorities
from capataz.errors import ConfigurationError, Conflict, Fault, InvalidSubmission, QueueFull
from capataz.handlers import MAX_TIME_LIMIT, Handler
from capataz.lifecycle import unique_keys, wakeup
from capataz.models import Task
from capataz.models.task import new_task_id
from capataz.policy import MAX_ATTEMPTS, is_number
from capataz.sql import statement
from capataz.states import State
from capataz.uniqueness import Debounce, Throttle, Unique
from capataz.uniqueness import Policy as UniquePolicy

MAX_DELAY = 10 * 366 * 24 * 3600.0
MAX_FAULTS = 100
# Submissions of one statement.
AT_ONCE = 5000
# The first half of the advisory lock under which tasks are submitted to a limited queue.
LIMIT_LOCK = 0x43505A4C
# What Celery itself adds to every call, and what is about a message that is never sent: no difference to the
# task. Every other option of Celery's that is not translated is refused: it would be dropped in silence.
_NO_MATTER = frozenset(
    {"add_to_parent", "connection", "group_index", "parent_id", "periodic_task_name", "producer", "publisher"}
    | {"reply_to", "result_cls", "retry", "retry_policy", "root_id", "route_name", "router"}
)
_SAME_IN_CELERY = {
    "countdown": "delay",
    "priority": "priority",
    "queue": "queue",
    "task_id": "key",
    "time_limit": "time_limit",
    "soft_time_limit": "soft_time_limit",
}
# Options that Celery does not have, by our names, and by those that clients of the REST API use.
_OWN = {
    "max_attempts": "max_attempts",
    "maxAttempts": "max_attempts",
    "attempts": "max_attempts",
    "backoff": "backoff",
    "remove_on_complete": "remove_on_complete",
    "removeOnComplete": "remove_on_complete",
    "remove_on_fail": "remove_on_fail",
    "removeOnFail": "remove_on_fail",
    "delay": "delay",
    "timeout": "time_limit",
    "priority": "priority",
    "unique": "unique",
    "unique_key": "unique_key",
    "uniqueKey": "unique_key",
}
_MILLISECONDS = frozenset({"delay", "timeout"})
# Beyond the years 1 and 9999, which an offset can lead to, Python cannot read back what PostgreSQL keeps.
UNIQUE_POLICIES = (Unique, Throttle, Debounce)
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What somebody asks for: a type and its data, and what differs from the handler's own policy.

    ``delay`` and the limits are seconds. ``backoff`` and the removals have the forms that
    ``policy.parse_backoff`` and ``policy.parse_removal`` take. ``key`` is an id of the client's choice; one
    that is a UUID becomes the id of the task itself. ``unique`` is a policy, or its document in the API's
    words, instead of the handler's own; ``unique_key`` is what the task is unique by, instead of its payload.
    """

    type: str
    data: Any = None
    priority: int | str | None = None
    queue: str | None = None
    run_at: datetime | None = None
    delay: float | None = None
    expires_at: datetime | None = None
    key: str | None = None
    max_attempts: int | None = None
    soft_time_limit: float | None = None
    time_limit: float | None = None
    backoff: Any = None
    remove_on_complete: Any = None
    remove_on_fail: Any = None
    submitted_by: str | None = None
    schedule_id: int | None = None
    replay_of: uuid.UUID | None = None
    unique: UniquePolicy | Mapping[str, Any] | None = None
    unique_key: str | None = None
    # Its payload is given more before it runs (see ``workflows``): what lacks now is no fault.
    incomplete: bool = False


OPTIONS = frozenset(each.name for each in fields(Submission))


@dataclass(slots=True)  # not frozen: one is made for each task, and that takes three times as long
class _Row:
    """One checked submission, as the columns that ``submit.sql`` takes."""

    id: uuid.UUID
    key: str | None
    type: str
    queue: str
    priority: int
    payload: str
    lane_path: str | None
    max_attempts: int
    run_at: datetime | None
    delay: float
    expires_at: datetime | None
    soft_time_limit: float | None
    time_limit: float | None
    submitted_by: str | None
    schedule_id: int | None
    replay_of: uuid.UUID | None
    backoff: str | None
    keep: str | None
    unique_key: str | None
    unique_scope: str | None
    unique_period: float | None
    unique: UniquePolicy | None
    id_is_given: bool

    @property
    def is_contested(self) -> bool:
        """Whether somebody else may want to insert the same."""
        return self.id_is_given or self.key is not None or self.unique_key is not None


def submit(type: str, data: Any = None, **options: Any) -> Task:
    """Accept one task; it exists when the caller's transaction commits, and never if that rolls back.

    ``options`` are the fields of ``Submission``. With a ``key`` that is taken by a task of the same
    type and payload, that task is returned.

    Raises InvalidSubmission naming every fault, Conflict if ``key`` is taken by another task or the task is
    not unique and may not be so, and QueueFull if its queue has a limit and no room.
    """
    [task_id] = submit_many([Submission(type=type, data=data, **options)])
    return Task.objects.get(pk=task_id)


def submit_many(submissions: Iterable[Submission]) -> list[uuid.UUID]:
    """Accept all of these tasks or none; the ids come back in the given order.

    Up to AT_ONCE are one statement. More are inserted part by part in one transaction, so that of a long
    generator only the ids are kept, and the rows that somebody else may insert too: those go last, in order.

    Raises InvalidSubmission with pointers such as ``tasks/3/data/to``, Conflict for a taken key, and
    QueueFull. Whoever else submits to a limited queue waits for the end of the caller's transaction.
    """
    given = iter(submissions)
    part = list(islice(given, AT_ONCE))
    following = list(islice(given, 1))
    if following:
        return _submit_in_parts(chain(part, following, given))
    rows = _checked(part)
    return _submit_at_once(rows) if rows else []


def submit_part(submissions: list[Submission], first: int) -> list[uuid.UUID]:
    """Accept all of these or none, where faults count from ``first``."""
    faults: list[Fault] = []
    rows = _rows(submissions, faults, first)
    if faults:
        raise InvalidSubmission(faults)
    return _submit_at_once(rows)


def _submit_at_once(rows: list[_Row]) -> list[uuid.UUID]:
    if any(row.unique_key is not None for row in rows):
        return unique_keys.unless_deadlocked(lambda: _insert_and_ring(rows))
    with transaction.atomic():
        return _insert_and_ring(rows)


def _submit_in_parts(given: Iterator[Submission]) -> list[uuid.UUID]:
    ids: list[uuid.UUID] = []
    contested: dict[int, _Row] = {}
    faults: list[Fault] = []
    first = 0
    with transaction.atomic():
        while len(faults) < MAX_FAULTS and (part := list(islice(given, AT_ONCE))):
            rows = _rows(part, faults, first)
            if not faults:
                alone = [row for row in rows if not row.is_contested]
                if alone:
                    _insert_and_ring(alone)
                contested.update((first + n, row) for n, row in enumerate(rows) if row.is_contested)
                ids += [row.id for row in rows]
            first += len(part)
        if faults:
            raise InvalidSubmission(faults)
        if contested:
            for place, task_id in zip(contested, _submit_at_once([*contested.values()]), strict=True):
                ids[place] = task_id
    return ids


def _insert_and_ring(rows: list[_Row]) -> list[uuid.UUID]:
    ids = _insert(rows)
    transaction.on_commit(wakeup.ring)
    return ids


def _checked(submissions: list[Submission]) -> list[_Row]:
    faults: list[Fault] = []
    rows = _rows(submissions, faults, None if len(submissions) == 1 else 0)
    if faults:
        raise InvalidSubmission(faults)
    return rows


def _rows(submissions: list[Submission], faults: list[Fault], first: int | None) -> list[_Row]:
    """The rows of these submissions. What is wrong is added to ``faults``, counted from ``first``."""
    rows: list[_Row] = []
    for index, submission in enumerate(submissions):
        try:
            rows.append(_row(submission))
        except InvalidSubmission as error:
            prefix = "" if first is None else f"tasks/{first + index}/"
            faults += [Fault(prefix + fault.pointer, fault.code, fault.detail) for fault in error.faults]
            if len(faults) >= MAX_FAULTS:
                break
    return rows


def checked(given: Submission) -> dict[str, Any]:
    """The columns of the task that this submission would become. Raises InvalidSubmission."""
    return asdict(_row(given))


def faults(given: Submission) -> list[Fault]:
    """Everything that is wrong with this submission, by itself."""
    try:
        _row(given)
    except InvalidSubmission as error:
        return error.faults
    return []


def _row(given: Submission) -> _Row:
    faults = list(_option_faults(given))
    try:
        known = handlers.find(given.type)
        may_be_unique = given.unique is not None or given.unique_key is not None or known.unique is not None
        if may_be_unique:
            faults += _unique_faults(given, known)
        data = {} if given.data is None else given.data
        payload = known.parse_incomplete(data) if given.incomplete else known.parse(data)
        if len(payload.encode()) > settings.MAX_PAYLOAD:
            faults.append(Fault("data", "too_large", f"must be at most {settings.MAX_PAYLOAD} bytes of JSON"))
        asks_for_removal = given.remove_on_complete is not None or given.remove_on_fail is not None
        if asks_for_removal:
            faults += _removal_faults(given, known)
    except InvalidSubmission as error:
        faults += error.faults
    if faults:
        raise InvalidSubmission(faults)
    own_id = as_uuid(given.key)
    task_id = own_id or new_task_id()
    unique = _unique(given, known) if may_be_unique else None
    waits = unique.wait if isinstance(unique, Debounce) else None
    queue = given.queue or known.queue
    return _Row(
        id=task_id,
        key=None if own_id else given.key,
        type=known.name,
        queue=queue,
        priority=known.priority if given.priority is None else priorities.parse(given.priority),
        payload=sensitive.seal(payload, known.sensitive, sensitive.PAYLOAD, task_id),
        lane_path=known.flow.path,
        max_attempts=given.max_attempts or known.retry.attempts,
        run_at=given.run_at,
        # Of columns with numbers of both kinds psycopg makes nothing.
        delay=float(waits or given.delay or 0),
        expires_at=given.expires_at,
        soft_time_limit=given.soft_time_limit and float(given.soft_time_limit),
        time_limit=given.time_limit and float(given.time_limit),
        submitted_by=given.submitted_by,
        schedule_id=given.schedule_id,
        replay_of=given.replay_of,
        backoff=policy.parse_backoff(given.backoff),
        keep=_keep(given, known) if asks_for_removal or known.keep.rules else None,
        unique_key=_unique_key(unique, given, known, queue, payload),
        unique_scope=None if unique is None else unique.scope,
        unique_period=None if unique is None else unique.holds_for,
        unique=unique,
        id_is_given=own_id is not None,
    )


def _unique_key(
    unique: UniquePolicy | None, given: Submission, known: Handler[Any], queue: str, payload: str
) -> str | None:
    if unique is None:
        return None
    return uniqueness.key_of(
        unique,
        type=known.name,
        queue=queue,
        payload=payload,
        explicit=given.unique_key,
        is_secret=known.sensitive.touches(sensitive.PAYLOAD),
    )


def _unique(given: Submission, known: Handler[Any]) -> UniquePolicy | None:
    """The policy that this submission follows. Raises ConfigurationError for a document that is none."""
    if isinstance(given.unique, Mapping):
        return uniqueness.from_document(given.unique)
    return given.unique or known.unique or (None if given.unique_key is None else Unique())


def _unique_faults(given: Submission, known: Handler[Any]) -> Iterator[Fault]:
    for detail in uniqueness.faults_of_key(given.unique_key):
        yield Fault("uniqueKey", "bad_key", detail)
    if given.unique is not None and not isinstance(given.unique, (*UNIQUE_POLICIES, Mapping)):
        yield Fault("unique", "bad_policy", "must be a Unique, Throttle or Debounce, or its document")
        return
    try:
        policy = _unique(given, known)
    except ConfigurationError as error:
        yield Fault("unique", "bad_policy", str(error))
        return
    if policy is None:
        return
    if given.unique is not None:
        for detail in handlers.unique_faults(policy, known.payload, known.sensitive):
            yield Fault("unique", "bad_policy", detail)
    if isinstance(policy, Debounce):
        for name, value in (("runAt", given.run_at), ("delay", given.delay)):
            if value is not None:
                yield Fault(
                    name, "ambiguous", "means nothing beside a debounce, which says when the task runs"
                )


def _option_faults(given: Submission) -> Iterator[Fault]:
    if given.priority is not None:
        try:
            priorities.parse(given.priority)
        except ValueError as error:
            yield Fault("priority", "out_of_range", str(error))
    if given.queue is not None and given.queue not in known_queues():
        yield Fault("queue", "unknown_queue", f"must be one of {', '.join(sorted(known_queues()))}")
    if given.key is not None and not (0 < len(given.key) <= 255 and given.key.isprintable()):
        yield Fault("id", "bad_id", "must have 1 to 255 printable characters")
    if given.delay is not None and not (is_number(given.delay) and 0 <= given.delay <= MAX_DELAY):
        yield Fault("delay", "out_of_range", f"must be 0 to {MAX_DELAY:.0f} seconds")
    if given.max_attempts is not None and not (
        type(given.max_attempts) is int and 1 <= given.max_attempts <= MAX_ATTEMPTS
    ):
        yield Fault("maxAttempts", "out_of_range", f"must be 1 to {MAX_ATTEMPTS}")
    try:
        policy.parse_backoff(given.backoff)
    except ValueError as error:
        yield Fault("backoff", "bad_backoff", str(error))
    for name, when in (("runAt", given.run_at), ("expiresAt", given.expires_at)):
        if when is not None and when.utcoffset() is None:
            yield Fault(name, "no_time_zone", "must carry a time zone, such as Z")
        elif when is not None and not EARLIEST <= when <= LATEST:
            yield Fault(name, "out_of_range", f"must lie between {EARLIEST:%Y} and {LATEST:%Y}")
    for name, limit in (("timeLimit", given.time_limit), ("softTimeLimit", given.soft_time_limit)):
        if limit is not None and not (is_number(limit) and 0 < limit <= MAX_TIME_LIMIT):
            yield Fault(name, "out_of_range", f"must be above 0 and at most {MAX_TIME_LIMIT:.0f} seconds")


def _removals(given: Submission) -> Iterator[tuple[str, State, Any]]:
    """(its name on the wire, its outcome, what is asked) of each removal that is asked for."""
    if given.remove_on_complete is not None:
        yield "removeOnComplete", State.SUCCEEDED, given.remove_on_complete
    if given.remove_on_fail is not None:
        yield "removeOnFail", State.DEAD, given.remove_on_fail


def _removal_faults(given: Submission, known: Handler[Any]) -> Iterator[Fault]:
    """A client may ask for less than the handler and the settings keep, and not for more."""
    for name, outcome, asked in _removals(given):
        longest = max(
            getattr(settings, f"KEEP_{outcome.name}_DAYS") * 24 * 3600.0,
            known.keep.rules.get(outcome.value, {}).get("age", 0),
        )
        try:
            rule = policy.parse_removal(asked)
        except ValueError as error:
            yield Fault(name, "bad_removal", str(error))
            continue
        if rule.get("age", 0) > longest:
            yield Fault(name, "out_of_range", f"its age must be 0 to {longest:.0f} seconds")


def _keep(given: Submission, known: Handler[Any]) -> str | None:
    """The retention of its own that a task has, by outcome, as compact JSON; None if it has none."""
    rules = dict(known.keep.rules)
    for _, outcome, asked in _removals(given):
        rules[outcome.value] = policy.parse_removal(asked)
    rules = {outcome: rule for outcome, rule in rules.items() if rule}
    return json.dumps(rules) if rules else None


def known_queues() -> set[str]:
    """The queues that handlers of this installation name, and the default one."""
    return {settings.CELERY_TASK_DEFAULT_QUEUE, *handlers.queues()}


def _insert(rows: list[_Row]) -> list[uuid.UUID]:
    columns = _columns(rows)
    accepted, limits = _accept(columns, sure_of_room=False)
    if limits:
        _make_sure_of_room(rows, limits)
        accepted, _ = _accept(columns, sure_of_room=True)
    # An accepted id is used up: where two rows of one call name it, the second must be the same task.
    taken = [place for place, row in enumerate(rows) if not _use_up(row.id, accepted)]
    ids = [row.id for row in rows]
    unique = [place for place in taken if rows[place].unique_key is not None]
    plain = [place for place in taken if rows[place].unique_key is None]
    ids_of_plain = _same_tasks([rows[place] for place in plain])
    ids_of_unique = unique_keys.settle([rows[place] for place in unique], _insert_again, _same_tasks)
    for place, task_id in [*zip(plain, ids_of_plain, strict=True), *zip(unique, ids_of_unique, strict=True)]:
        ids[place] = task_id
    return ids


def _insert_again(rows: Sequence[_Row]) -> set[uuid.UUID]:
    """The ids that went in this time; there was room for them the first time."""
    accepted, _ = _accept(_columns(rows), sure_of_room=True)
    return accepted


def _columns(rows: Sequence[_Row]) -> dict[str, Any]:
    return {field.name: [getattr(row, field.name) for row in rows] for field in fields(_Row)}


def _accept(columns: dict[str, Any], *, sure_of_room: bool) -> tuple[set[uuid.UUID], dict[str, int]]:
    """The ids that were inserted; none, but the limits of their queues, where room has to be made sure of."""
    parameters = {**columns, "queues": sorted(set(columns["queue"])), "sure_of_room": sure_of_room}
    with psycopg.Cursor(database.driver()) as cursor:
        found = cursor.execute(statement("submit"), parameters).fetchall()
    accepted = {task_id for task_id, _, _ in found if task_id is not None}
    return accepted, {queue: limit for _, queue, limit in found if queue is not None}


def _make_sure_of_room(rows: list[_Row], limits: dict[str, int]) -> None:
    """Let nobody else submit to these queues until the transaction ends. Raises QueueFull if one of them has
    too little room for those of its rows that are not known yet."""
    with psycopg.Cursor(database.driver()) as cursor:
        # One after the other in one order, and before anything else is locked. Only a statement that begins
        # afterwards sees all that others have submitted.
        for queue in sorted(limits):
            cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LIMIT_LOCK, queue])
        for queue, limit in limits.items():
            own = [row for row in rows if row.queue == queue]
            columns = {"id": [row.id for row in own], "key": [row.key for row in own]}
            parameters = {**columns, "queue": queue, "limit": limit}
            [(waiting, asked)] = cursor.execute(statement("room"), parameters).fetchall()
            if waiting + asked > limit:  # what waits is counted up to the limit, so what is known always fits
                raise QueueFull(queue, limit=limit, waiting=waiting, asked=asked)


def _use_up(task_id: uuid.UUID, accepted: set[uuid.UUID]) -> bool:
    if task_id not in accepted:
        return False
    accepted.remove(task_id)
    return True


def _same_tasks(rows: Sequence[_Row]) -> list[uuid.UUID]:
    """The tasks that hold these rows' ids. Raises Conflict if one of them is another task."""
    if not rows:
        return []
    columns = {name: [getattr(row, name) for row in rows] for name in ("id", "key", "type", "payload")}
    with psycopg.Cursor(database.driver()) as cursor:
        found: dict[int, uuid.UUID] = dict(cursor.execute(statement("same_tasks"), columns).fetchall())
        for place, row in enumerate(rows, start=1):
            if place not in found and handlers.declared_sensitive(row.type).touches(sensitive.PAYLOAD):
                found.update((place, task_id) for task_id in _same_when_opened(cursor, row))
    for place, row in enumerate(rows, start=1):
        if place not in found:
            raise Conflict(f"the id {row.key or row.id} is taken by another task")
    return [found[place] for place in range(1, len(rows) + 1)]


def _same_when_opened(cursor: psycopg.Cursor[Any], row: _Row) -> Iterator[uuid.UUID]:
    """The task that holds this row's id, if it has the same payload. Encrypted, no two look the same."""
    named = {"id": row.id, "key": row.key, "type": row.type}
    for task_id, payload in cursor.execute(statement("payload_of_same"), named).fetchall():
        theirs = sensitive.opened_text(payload, sensitive.PAYLOAD, task_id)
        mine = sensitive.opened_text(row.payload, sensitive.PAYLOAD, row.id)
        if cursor.execute("SELECT %s::jsonb = %s::jsonb", [theirs, mine]).fetchone() == (True,):
            yield task_id


def from_celery(handler: Handler[Any], args: Any, kwargs: Any, options: Mapping[str, Any]) -> Task:
    """Accept a task from ``delay``, ``apply_async``, ``send_task`` or ``celery call``.

    The payload is the keyword arguments, or one positional dict. ``eta``, ``countdown``, ``expires``,
    ``priority``, ``queue``, ``time_limit`` and ``soft_time_limit`` mean what they mean to Celery, but
    wait in PostgreSQL.

    Raises InvalidSubmission for any other option that would make a difference.
    """
    [task_id] = submit_many([asked_by_celery(handler, args, kwargs, options)])
    return Task.objects.get(pk=task_id)


def asked_by_celery(handler: Handler[Any], args: Any, kwargs: Any, options: Mapping[str, Any]) -> Submission:
    """What a Celery call of this handler asks for. Raises InvalidSubmission for what it cannot mean.

    Options that Celery does not have may be given beside its own or, as a schedule has to, in ``headers``.
    """
    headers = options.get("headers") or {}
    is_ours = isinstance(headers, Mapping) and set(headers) <= set(_OWN)
    given = {name: value for name, value in options.items() if not (is_ours and name == "headers")}
    _refuse_untranslated(given)
    asked: list[tuple[str, str, Any]] = [
        (name, field, given.get(name)) for name, field in _SAME_IN_CELERY.items()
    ]
    asked += [
        (name, *_in_our_words(name, source[name]))
        for source in (given, headers if is_ours else {})
        for name in source
        if name in _OWN
    ]
    return Submission(
        type=handler.name,
        data=handler.from_call(args, kwargs),
        run_at=_moment("eta", options.get("eta")),
        expires_at=_moment("expires", _from_now(options.get("expires"))),
        **_without_contradiction(asked),
    )


def asked_on_the_wire(task: Mapping[str, Any]) -> Submission:
    """What an object with ``type``, ``data``, ``id`` and options, by their names on the wire, asks for.

    Raises InvalidSubmission for a name that it does not know.
    """
    known = {"type": "type", "data": "data", "payload": "data", "id": "key", "queue": "queue"}
    faults = [Fault(name, "unknown", "is not known here") for name in task if name not in {*known, *_OWN}]
    if "type" not in task:
        faults.append(Fault("type", "missing", "must be given"))
    if faults:
        raise InvalidSubmission(faults)
    asked = [(name, known[name], value) for name, value in task.items() if name in known]
    asked += [(name, *_in_our_words(name, value)) for name, value in task.items() if name in _OWN]
    return Submission(**_without_contradiction(asked))


def _in_our_words(name: str, value: Any) -> tuple[str, Any]:
    field = _OWN[name]
    return field, value / 1000 if name in _MILLISECONDS and is_number(value) else value


def _without_contradiction(asked: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """The fields of a submission by what was asked under any of their names."""
    found: dict[str, tuple[str, Any]] = {}
    for name, field, value in asked:
        if value is None:
            continue
        other, before = found.setdefault(field, (name, value))
        if before != value:
            raise InvalidSubmission([Fault(name, "ambiguous", f"contradicts {other}: give one of them")])
    return {field: value for field, (_, value) in found.items()}


def _refuse_untranslated(options: Mapping[str, Any]) -> None:
    faults = [
        Fault(name, "not_supported", "means nothing to a handler's task yet: leave it out")
        for name, value in options.items()
        if value
        and name not in {*_SAME_IN_CELERY, *_NO_MATTER, *_OWN, "eta", "expires"}
        and (name, value) != ("serializer", "json")
    ]
    if faults:
        raise InvalidSubmission(faults)


def _from_now(expires: Any) -> Any:
    try:
        delay = timedelta(seconds=float(expires))  # first: what is no number is no reason to ask for the time
        return database.database_now() + delay
    except (ValueError, TypeError):
        return expires
    except OverflowError:
        detail = "is too many seconds from now"
        raise InvalidSubmission([Fault("expires", "out_of_range", detail)]) from None


def _moment(name: str, given: Any) -> datetime | None:
    """A time as Celery takes it: text too, and without a time zone it is UTC's."""
    try:
        when = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        when = False
    if when is not None and not isinstance(when, datetime):
        detail = "must be a time such as 2030-01-31T12:00:00Z; expires may be seconds from now"
        raise InvalidSubmission([Fault(name, "not_a_time", detail)])
    return when and when.replace(tzinfo=when.tzinfo or UTC)


def as_uuid(key: str | None) -> uuid.UUID | None:
    """The id of the task that a client's id is, if it is one."""
    try:
        return uuid.UUID(key) if key else None
    except ValueError:
        return None
