"""Workflows: submitting tasks that wait for each other, and acting on all of them at once.

A workflow is submitted whole or not at all, in the caller's own transaction, by a few statements however many
tasks it has.
"""

from __future__ import annotations

import graphlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psycopg
from django.db import transaction
from django.db.models.functions import Now

from capataz import database, handlers
from capataz.errors import Conflict, Fault, IllegalMove, InvalidSubmission
from capataz.handlers import RunningTask
from capataz.lifecycle import notes, parents, settling, submission, task_results, wakeup
from capataz.lifecycle.settling import execute
from capataz.lifecycle.submission import Submission
from capataz.lifecycle.task_results import Record
from capataz.models import Feeds, OnFailure, Task
from capataz.models import Workflow as Row
from capataz.models.task import new_task_id
from capataz.models.workflow import task_id_for
from capataz.sql import statement

LONGEST_NAME = 200
SUCCESS, COMPLETE, FAILURE = "success", "complete", "failure"
_NO_OPTIONS = {"key", "replay_of", "schedule_id", "incomplete", "submitted_by", "type", "data"}
# What a follow-up cannot have: it is inserted once, when its time has come, whatever else there is then.
_NOT_FOR_CALLBACKS = ("run_at", "expires_at", "unique", "unique_key")


@dataclass(frozen=True)
class After:
    """One thing that a node waits for: a node of the workflow, by its name, or a task that exists."""

    parent: str | uuid.UUID
    on_failure: str = OnFailure.CANCEL
    feeds: str = Feeds.NOTHING


@dataclass(eq=False)
class Node:
    """A task of a workflow, before it is submitted. ``id`` is the one that the task will have."""

    name: str
    type: str
    data: Any
    after: list[After] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    id: uuid.UUID = field(default_factory=new_task_id)


@dataclass(frozen=True)
class Step:
    """A task that is to be part of a chain or a group. An ``immutable`` one ignores what comes before it."""

    type: str
    data: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    immutable: bool = False


@dataclass(frozen=True)
class Chain:
    """One part after the other, each given the result of the one before."""

    parts: Sequence[Part]


@dataclass(frozen=True)
class Group:
    """Parts at once. What comes after a group waits for all of it, and is given the list of the results."""

    parts: Sequence[Part]


Part = Step | Chain | Group


def step(type: str, data: Any = None, *, immutable: bool = False, **options: Any) -> Step:
    """A task of this type; ``options`` are those of ``Workflow.add``."""
    return Step(type, data, options, immutable)


def chain(*parts: Part) -> Chain:
    """These parts one after the other."""
    return Chain(parts)


def group(*parts: Part) -> Group:
    """These parts at once."""
    return Group(parts)


def chord(header: Iterable[Part], body: Part) -> Chain:
    """The body when all of the header has succeeded, given the list of its results."""
    return Chain([Group(list(header)), body])


class Workflow:
    """A workflow that is being put together.

    ``on_success``, ``on_complete`` and ``on_failure`` are steps that are submitted, once, when all tasks have
    succeeded, when all have ended, and at the first dead letter. As a context manager it submits itself at
    the end of the block, unless that raises. One that is ``open`` can be added to later, and is never
    finished before ``close`` is called.
    """

    def __init__(
        self,
        name: str = "",
        *,
        on_success: Step | None = None,
        on_complete: Step | None = None,
        on_failure: Step | None = None,
        submitted_by: str | None = None,
        open: bool = False,
        id: uuid.UUID | None = None,
    ) -> None:
        self.id = id or new_task_id()
        self.name = name
        self.submitted_by = submitted_by
        self.open = open
        given = {SUCCESS: on_success, COMPLETE: on_complete, FAILURE: on_failure}
        self.callbacks = {kind: each for kind, each in given.items() if each is not None}
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Workflow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.submit()

    def add(
        self,
        type: str,
        data: Any = None,
        *,
        name: str | None = None,
        after: Iterable[Node | str | After] | Mapping[Any, str] = (),
        on_failure: str = OnFailure.CANCEL,
        feed: bool = False,
        id: uuid.UUID | None = None,
        **options: Any,
    ) -> Node:
        """Add a task that starts when all of ``after`` have ended.

        ``after`` are nodes, or names of nodes that may be added later; as a mapping, each with its own
        ``on_failure``. ``on_failure`` says what is to happen when one of these has not succeeded: ``cancel``
        this task, ``run`` it all the same, or ``ignore`` that one. Their results are ``task.results``, by the
        names of the nodes; with ``feed`` they are put into the payload too: of one task the result, of
        several the list. ``options`` are the fields of ``Submission``.

        Raises InvalidSubmission for a name that is taken, or an option or policy that does not exist.
        """
        name = str(len(self.nodes)) if name is None else name
        self._check(name, on_failure, options)
        given = list(after)
        feeds = Feeds.NOTHING if not feed else Feeds.ONE if len(given) == 1 else Feeds.LIST
        edges = [self._edge(each, after, on_failure, feeds, name) for each in given]
        node = Node(name, type, data, edges, options, *([id] if id else []))
        self.nodes[name] = node
        return node

    def include(self, part: Part) -> list[Node]:
        """Add a chain, a group or a step, with all that is nested in it; returns the nodes that end it."""
        return self._expand(part, [], Feeds.NOTHING)[0]

    def submit(self) -> Row:
        """Accept all of it or nothing; it exists when the caller's transaction commits.

        Raises InvalidSubmission with pointers such as ``nodes/NAME/data/to``; a cycle is named. Raises
        QueueFull as ``submit_many`` does.
        """
        self._refuse_cycles()
        called_back = {
            kind: _callback(kind, each, self.submitted_by) for kind, each in self.callbacks.items()
        }
        with transaction.atomic():
            row = Row.objects.create(
                id=self.id, name=self.name[:LONGEST_NAME], total=len(self.nodes), callbacks=called_back,
                submitted_by=self.submitted_by, closed_at=None if self.open else Now(),
            )  # fmt: skip
            _insert(self.id, list(self.nodes.values()), self.submitted_by, added=False)
            if not self.nodes:
                settling.finish(database.driver(), [self.id])
        row.refresh_from_db()
        return row

    def _check(self, name: str, on_failure: str, options: Mapping[str, Any]) -> None:
        where = f"nodes/{name}"
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            detail = f"must have 1 to {LONGEST_NAME} printable characters"
            raise InvalidSubmission([Fault("nodes", "bad_name", f"the name of a node {detail}")])
        if name in self.nodes:
            raise InvalidSubmission([Fault(where, "taken", "is the name of another node too")])
        _check_options(where, options)
        _check_policy(f"{where}/onFailure", on_failure)

    def _edge(self, given: Any, after: Any, on_failure: str, feeds: str, name: str) -> After:
        if isinstance(given, After):
            return given
        policy = after[given] if isinstance(after, Mapping) else on_failure
        _check_policy(f"nodes/{name}/after", policy)
        if isinstance(given, Node) and self.nodes.get(given.name) is not given:
            detail = f"{given.name} is a node of another workflow"
            raise InvalidSubmission([Fault(f"nodes/{name}/after", "unknown_node", detail)])
        return After(given.name if isinstance(given, Node) else given, policy, feeds)

    def _expand(self, part: Part, after: list[Node], feeds: str) -> tuple[list[Node], bool]:
        """(the nodes that end this part, whether their results are a list)."""
        match part:
            case Step():
                return [self._add_step(part, after, feeds)], False
            case Chain():
                many = feeds == Feeds.LIST
                for each in part.parts:
                    after, many = self._expand(each, after, feeds)
                    feeds = Feeds.LIST if many else Feeds.ONE
                return after, many
            case Group():
                ends = [self._expand(each, after, feeds)[0] for each in part.parts]
                return [node for nodes in ends for node in nodes], True
        raise TypeError(f"{part!r} is neither a step nor a chain nor a group")

    def _add_step(self, part: Step, after: list[Node], feeds: str) -> Node:
        options, data = dict(part.options), part.data
        policy = options.pop("on_failure", OnFailure.CANCEL)
        if part.immutable:
            feeds = Feeds.NOTHING
        elif feeds == Feeds.LIST and not after:  # an empty group has an empty list of results
            data = parents.with_previous(handlers.find(part.type), data or {}, [])
        edges = [After(node.name, policy, feeds) for node in after]
        name = options.pop("name", None) or f"{part.type} {len(self.nodes)}"
        return self.add(part.type, data, name=name, after=edges, **options)

    def _refuse_cycles(self) -> None:
        graph = {}
        for node in self.nodes.values():
            graph[node.name] = [each.parent for each in node.after if isinstance(each.parent, str)]
            unknown = [name for name in graph[node.name] if name not in self.nodes]
            if unknown:
                detail = f"{', '.join(unknown)}: no node has this name"
                raise InvalidSubmission([Fault(f"nodes/{node.name}/after", "unknown_node", detail)])
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            detail = f"each of these waits for the one before it, so that none could start: {circle}"
            raise InvalidSubmission([Fault("nodes", "cycle", detail)]) from None


def submit_part(part: Part, name: str = "", **options: Any) -> Row:
    """Submit a chain, a group or a chord as a workflow of its own; ``options`` are those of ``Workflow``."""
    flow = Workflow(name, **options)
    flow.include(part)
    return flow.submit()


def add_many(workflow: Row, nodes: Sequence[Node], *, by: str | None = None) -> list[uuid.UUID]:
    """Add tasks to a workflow that is open: all of them or none. Names of earlier nodes may be waited for.

    Raises Conflict if the workflow is closed, was cancelled, or has a node of one of these names.
    """
    for node in nodes:
        _check_options(f"nodes/{node.name}", node.options)
    with transaction.atomic():
        # Whoever closes it waits until these are there; settling is not kept from it.
        row = Row.objects.select_for_update(no_key=True).get(pk=workflow.pk)
        if row.closed_at is not None:
            raise Conflict(f"workflow {row} is closed: nothing can be added to it")
        _insert(row.pk, nodes, by, added=True)
    return [node.id for node in nodes]


def close(workflow: Row) -> Row:
    """Let nobody add to this workflow any more: it is finished when its tasks have ended."""
    with transaction.atomic():
        Row.objects.filter(pk=workflow.pk, closed_at__isnull=True).update(closed_at=Now())
        settling.finish(database.driver(), [workflow.pk])
        transaction.on_commit(wakeup.ring)
    workflow.refresh_from_db()
    return workflow


def add_to(
    running: RunningTask,
    type: str,
    data: Any = None,
    *,
    name: str | None = None,
    after: Iterable[uuid.UUID] | None = None,
    on_failure: str = OnFailure.CANCEL,
    feed: bool = False,
    **options: Any,
) -> uuid.UUID:
    """Add a task to the workflow of a running one, which gets a workflow of its own if it has none.

    It waits for the running task itself, unless ``after`` names others, or none. The same name, or the same
    place among those without one, is the same task at each attempt.
    """
    place = running.__dict__.setdefault("_added", [])
    name = f"{running.id}/{len(place)}" if name is None else name
    place.append(name)
    _check_options("task", options)
    _check_policy("onFailure", on_failure)
    task_id = task_id_for(running.id, name)
    waits_for = [running.id] if after is None else list(after)
    feeds = Feeds.NOTHING if not feed else Feeds.ONE if len(waits_for) == 1 else Feeds.LIST
    edges = [After(each, on_failure, feeds) for each in waits_for]
    node = Node(name, type, data, edges, options, task_id)
    with transaction.atomic():
        if not Task.objects.filter(pk=task_id).exists():
            _insert(_workflow_of(running), [node], None, added=True)
    return task_id


def _workflow_of(running: RunningTask) -> uuid.UUID:
    workflow_id = Task.objects.values_list("workflow_id", flat=True).get(pk=running.id)
    if workflow_id is None:
        workflow_id = task_id_for(running.id, "workflow")
        Row.objects.get_or_create(id=workflow_id, defaults={"closed_at": Now(), "name": running.type})
        Task.objects.filter(pk=running.id, workflow_id__isnull=True).update(
            workflow_id=workflow_id, settled_at=settling.NEVER, settled_as="new"
        )
    if Row.objects.filter(pk=workflow_id, cancelled_at__isnull=False).exists():
        raise Conflict("the workflow of this task was cancelled: nothing can be added to it")
    return workflow_id


def _insert(workflow_id: uuid.UUID, nodes: Sequence[Node], by: str | None, *, added: bool) -> None:
    if not nodes:
        return
    ids = [node.id for node in nodes]
    try:
        made = submission.submit_many([_submission(node, by) for node in nodes])
    except InvalidSubmission as error:
        raise InvalidSubmission(_below_nodes(error.faults, nodes)) from None
    columns = {
        "workflow": workflow_id,
        "ids": ids,
        "nodes": [node.name for node in nodes],
        "blocked": [bool(node.after) for node in nodes],
        "added": added,
    }
    connection = database.driver()
    joined = {row[0] for row in execute(connection, statement("join_workflow"), columns)}
    others = [node.name for node, task_id in zip(nodes, made, strict=True) if task_id not in joined]
    if others or made != ids:
        raise Conflict(f"a task like these nodes exists already: {', '.join(others[:10])}")
    named = {node.name: node.id for node in nodes}
    if added:
        named = {**_named(workflow_id, nodes), **named}
    edges = [(node, place, each) for node in nodes for place, each in enumerate(node.after)]
    _refuse_strangers(workflow_id, nodes)
    names = {task_id: name for name, task_id in named.items()}
    ends = [each.parent if isinstance(each.parent, uuid.UUID) else named[each.parent] for _, _, each in edges]
    columns = {
        "parent": ends,
        "child": [node.id for node, _, _ in edges],
        "name": [names.get(end, str(end)) for end in ends],
        "position": [place for _, place, _ in edges],
        "feeds": [str(each.feeds) for _, _, each in edges],
        "on_failure": [str(each.on_failure) for _, _, each in edges],
    }
    execute(connection, statement("add_dependencies"), columns)


def _named(workflow_id: uuid.UUID, nodes: Sequence[Node]) -> dict[str, uuid.UUID]:
    """The ids of the nodes of this workflow that these wait for. Raises InvalidSubmission if there is
    none."""
    wanted = {each.parent for node in nodes for each in node.after if isinstance(each.parent, str)}
    own = {node.name for node in nodes}
    known = Task.objects.filter(workflow_id=workflow_id, node__in=wanted | own).exclude(
        pk__in=[node.id for node in nodes]
    )
    found = {str(name): task_id for name, task_id in known.values_list("node", "pk")}
    taken, unknown = sorted(own & found.keys()), sorted(wanted - own - found.keys())
    if taken:
        raise Conflict(f"the workflow has a node of this name already: {', '.join(taken[:10])}")
    if unknown:
        detail = f"{', '.join(unknown[:10])}: no node has this name"
        raise InvalidSubmission([Fault("nodes/after", "unknown_node", detail)])
    return found


def _refuse_strangers(workflow_id: uuid.UUID, nodes: Sequence[Node]) -> None:
    """Raise InvalidSubmission if one of these waits for a task of no, or of another workflow: nobody would
    tell."""
    wanted = {each.parent for node in nodes for each in node.after if isinstance(each.parent, uuid.UUID)}
    if wanted:
        known = Task.objects.filter(workflow_id=workflow_id, pk__in=wanted).values_list("pk", flat=True)
        strangers = sorted(str(each) for each in wanted - set(known))
        if strangers:
            detail = f"{', '.join(strangers[:10])}: no task of this workflow has this id"
            raise InvalidSubmission([Fault("after", "unknown_task", detail)])


def _submission(node: Node, by: str | None) -> Submission:
    feeds = any(each.feeds for each in node.after)
    return Submission(
        type=node.type, data=node.data, key=str(node.id), submitted_by=by, incomplete=feeds, **node.options
    )


def _below_nodes(faults: list[Fault], nodes: Sequence[Node]) -> list[Fault]:
    """The same faults, with the names of the nodes in the place of their numbers."""
    made = []
    for fault in faults:
        number, rest = 0, fault.pointer
        if len(nodes) > 1:
            _, place, rest = fault.pointer.split("/", 2)
            number = int(place)
        made.append(Fault(f"nodes/{nodes[number].name}/{rest}", fault.code, fault.detail))
    return made


def _callback(kind: str, given: Step, by: str | None) -> dict[str, Any]:
    _check_options(f"on_{kind}", given.options, but=_NOT_FOR_CALLBACKS)
    try:
        row = submission.checked(
            Submission(type=given.type, data=given.data, submitted_by=by, **given.options)
        )
    except InvalidSubmission as error:
        faults = [Fault(f"on_{kind}/{each.pointer}", each.code, each.detail) for each in error.faults]
        raise InvalidSubmission(faults) from None
    columns = (
        "id", "type", "queue", "priority", "payload", "max_attempts", "delay", "soft_time_limit",
        "time_limit", "submitted_by", "backoff", "keep", "lane_path",
    )  # fmt: skip
    return {name: str(row[name]) if name == "id" else row[name] for name in columns}


def _check_options(where: str, options: Mapping[str, Any], but: Sequence[str] = ()) -> None:
    known = submission.OPTIONS - _NO_OPTIONS - set(but)
    unknown = sorted(options.keys() - known)
    if unknown:
        detail = f"is no option here; there are {', '.join(sorted(known))}"
        raise InvalidSubmission([Fault(f"{where}/{name}", "unknown_option", detail) for name in unknown])


def _check_policy(where: str, on_failure: str) -> None:
    if on_failure not in OnFailure.values:
        detail = f"must be one of {', '.join(OnFailure.values)}"
        raise InvalidSubmission([Fault(where, "unknown_policy", detail)])


# Acting on all of it.


def cancel(workflow: Row, *, reason: str = "", by: str = "") -> Row:
    """Cancel every task of it that has not ended: those that wait at once, those that are held as ``cancel``
    of one task does. Nothing is added to it any more. Raises IllegalMove if all its tasks have ended."""
    with transaction.atomic():
        database.be_impatient()
        if not Row.objects.filter(pk=workflow.pk, finished_at__isnull=True).update(
            cancelled_at=Now(), closed_at=Now()
        ):
            raise IllegalMove(f"workflow {workflow} cannot be cancelled: all its tasks have ended")
        asked = {"workflow": workflow.pk, "by": by, "because": reason}
        told = execute(database.driver(), statement("cancel_workflow"), asked)
        ended = [Record(task_id) for task_id, state in told if state == "cancelled"]
        task_results.record(database.driver(), ended)
        notes.tell("workflow.cancelled", subject=str(workflow.pk), because=reason, by=by)
        settling.finish(database.driver(), [workflow.pk])
        transaction.on_commit(wakeup.ring)
    workflow.refresh_from_db()
    return workflow


def retry(workflow: Row, *, by: str = "") -> int:
    """Queue again what failed, expired or was cancelled; returns how many tasks that are. What has succeeded
    is left alone, and what was cancelled for its parents comes back by itself. Raises IllegalMove if there is
    nothing of the kind, or another task holds the unique key of one of them."""
    with transaction.atomic():
        database.be_impatient()
        try:
            with transaction.atomic():
                retried = execute(database.driver(), statement("retry_workflow"), {"workflow": workflow.pk})
        except psycopg.errors.UniqueViolation:
            why = "another task holds the unique key of one of its tasks"
            raise IllegalMove(f"workflow {workflow} cannot be retried: {why}") from None
        if not retried:
            raise IllegalMove(f"workflow {workflow} has no task that could be retried")
        Row.objects.filter(pk=workflow.pk).update(cancelled_at=None, finished_at=None)
        task_results.forget([row[0] for row in retried])
        notes.tell("workflow.retried", subject=str(workflow.pk), by=by)
        transaction.on_commit(wakeup.ring)
    workflow.refresh_from_db()
    return len(retried)
