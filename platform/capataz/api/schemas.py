"""The forms of requests and answers. Requests are validated by them; answers are documented by them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

from capataz import priority as priorities
from capataz.handlers import DURABLE_NAME, QUEUE_NAME
from capataz.lifecycle import submission
from capataz.lifecycle.selection import Selection
from capataz.lifecycle.submission import Submission
from capataz.models.queue import HIGHEST_LIMIT

MOST_TASKS = 50_000
MOST_ITEMS = 200
MOST_LINES = 1000
# What an address below that of a task ends in.
BELOW_A_TASK = ("/cancel", "/retry", "/replay", "/discard", "/logs")

# --- Requests -----------------------------------------------------------------------------------------


def _text(value: Any) -> Any:
    """Only RFC 3339: a number could be seconds or milliseconds."""
    if not isinstance(value, str):
        raise PydanticCustomError("not_a_time", "must be a time such as 2030-01-31T12:00:00Z")
    return value


def _addressable(name: str) -> str:
    """An id under which the task can be found again: not the address of something else."""
    if name == "bulk" or name.endswith(BELOW_A_TASK):
        detail = f"must neither be 'bulk' nor end in {', '.join(BELOW_A_TASK)}"
        raise PydanticCustomError("bad_id", detail)
    return name


Time = Annotated[AwareDatetime, BeforeValidator(_text)]
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
# Looked at by the submission alone: a union here would name the same fault once for each of its members.
Priority = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": priorities.LOWEST, "maximum": priorities.HIGHEST},
                {"type": "string", "enum": list(priorities.NAMES)},
                {"type": "null"},
            ]
        }
    ),
]
Backoff = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string", "enum": ["exponential", "fixed"]},
                        "delay": {"type": "number", "minimum": 0},
                        "jitter": {"type": "string", "enum": ["full", "none"]},
                    },
                    "required": ["type", "delay"],
                    "additionalProperties": False,
                },
                {"type": "string", "enum": ["exponential", "fixed"]},
                {"type": "number", "minimum": 0},
                {"type": "null"},
            ]
        }
    ),
]
Removal = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "integer", "minimum": 0},
                {
                    "type": "object",
                    "properties": {
                        "age": {"type": "number", "minimum": 0},
                        "count": {"type": "integer", "minimum": 0},
                    },
                    "additionalProperties": False,
                },
                {"type": "null"},
            ]
        }
    ),
]
Reason = Annotated[StrictStr, Field(max_length=200)]


class Request(BaseModel):
    """A request: a name that it does not know is a fault, not something to overlook."""

    model_config = ConfigDict(extra="forbid", alias_generator=AliasGenerator(alias=to_camel))


def _invalid(title: str, told: list[tuple[tuple[int | str, ...], str, str]]) -> ValidationError:
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(code, detail),
            loc=location,
            input=None,
        )
        for location, code, detail in told
    ]
    return ValidationError.from_exception_data(title, lines)


class TaskIn(Request):
    """A task to submit. What is left out follows the handler's own policy."""

    type: Annotated[StrictStr, Field(max_length=64)]
    data: Annotated[Any, Field(description="What the type's schema asks for.")] = None
    payload: Annotated[Any, Field(description="Another name for data.")] = None
    priority: Annotated[
        Priority,
        Field(description="0 to 10, larger runs sooner; or high, medium, low, alta, media, baja."),
    ] = None
    id: Annotated[
        Annotated[StrictStr, Field(min_length=1, max_length=255), AfterValidator(_addressable)] | None,
        Field(description="An id of your choice: submitting the same task again returns the first one."),
    ] = None
    queue: Annotated[StrictStr, Field(max_length=64)] | None = None
    run_at: Annotated[Time | None, Field(description="Not before this time.")] = None
    delay: Annotated[Number | None, Field(description="Milliseconds to wait first.")] = None
    expires_at: Annotated[Time | None, Field(description="Not to be started after this time.")] = None
    max_attempts: Annotated[
        StrictInt | None,
        Field(
            validation_alias=AliasChoices("maxAttempts", "attempts"), description="All, the first included."
        ),
    ] = None
    timeout: Annotated[Number | None, Field(description="Time limit of one attempt, in milliseconds.")] = None
    backoff: Annotated[
        Backoff, Field(description="How long it waits after a failure; delay is in milliseconds.")
    ] = None
    remove_on_complete: Annotated[
        Removal, Field(description="Whether, or how many or for how long, it is kept once it has succeeded.")
    ] = None
    remove_on_fail: Annotated[
        Removal, Field(description="The same, once it is a dead letter; age is in seconds.")
    ] = None
    unique: Annotated[
        dict[str, Any] | None,
        Field(
            description="Instead of the type's own: mode (return, reject, replace, throttle, debounce), by, "
            "states, periodMs, trailing, waitMs, maxWaitMs, factor, after, longestMs."
        ),
    ] = None
    unique_key: Annotated[
        StrictStr | None, Field(description="What the task is unique by, instead of its data.")
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _names_every_fault(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """A fault of form must not hide those of meaning: what has its form is looked at all the same."""
        value = cls._under_one_name(value)
        try:
            return validate(value)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            faulty = {fault["loc"][0] for fault in faults if fault["loc"]}
            if not isinstance(value, dict) or not faulty:
                raise
            rest = {"type": "", **{name: given for name, given in value.items() if name not in faulty}}
            try:
                sound = validate(rest)
            except ValidationError:
                raise error from None
            if not rest["type"]:
                faulty |= {"type", "data"}  # nobody knows what the data would have to be
            told = [(tuple(fault["loc"]), fault["type"], fault["msg"]) for fault in faults]
            told += [
                (tuple(fault.pointer.split("/")), fault.code, fault.detail)
                for fault in submission.faults(sound.submission(""))
                if fault.pointer.split("/")[0] not in faulty
            ]
            raise _invalid(cls.__name__, told) from None

    @classmethod
    def _under_one_name(cls, value: Any) -> Any:
        """``attempts`` is another name for ``maxAttempts``: both together have to say the same."""
        if not isinstance(value, dict) or not {"maxAttempts", "attempts"} <= value.keys():
            return value
        rest = {name: given for name, given in value.items() if name != "attempts"}
        if value["attempts"] != value["maxAttempts"]:
            detail = "contradicts maxAttempts, which is the same: give one of them"
            raise _invalid(cls.__name__, [(("attempts",), "ambiguous", detail)])
        return rest

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> Self:
        if {"data", "payload"} <= self.model_fields_set:
            raise PydanticCustomError("ambiguous", "give data or payload, not both")
        if self.run_at is not None and self.delay is not None:
            raise PydanticCustomError("ambiguous", "give runAt or delay, not both")
        return self

    def submission(self, by: str) -> Submission:
        """What the caller ``by`` asks for, in the words of the verb."""
        return Submission(
            type=self.type,
            data=self.payload if "payload" in self.model_fields_set else self.data,
            priority=self.priority,
            queue=self.queue,
            run_at=self.run_at,
            delay=None if self.delay is None else self.delay / 1000,
            expires_at=self.expires_at,
            key=self.id,
            max_attempts=self.max_attempts,
            time_limit=None if self.timeout is None else self.timeout / 1000,
            backoff=self.backoff,
            remove_on_complete=self.remove_on_complete,
            remove_on_fail=self.remove_on_fail,
            submitted_by=by,
            unique=self.unique,
            unique_key=self.unique_key,
        )


class BulkIn(Request):
    """Tasks to submit together: all of them are accepted, or none."""

    tasks: Annotated[list[TaskIn], Field(min_length=1, max_length=MOST_TASKS)]


class NodeIn(TaskIn):
    """A task of a workflow, and what it waits for."""

    key: Annotated[StrictStr, Field(min_length=1, max_length=200, description="Its name in the workflow.")]
    after: Annotated[
        list[StrictStr] | dict[StrictStr, StrictStr],
        Field(description="The keys of nodes that have to end first; as an object, each with its onFailure."),
    ] = []
    on_failure: Annotated[
        StrictStr, Field(description="If one of these does not succeed: cancel, run or ignore.")
    ] = "cancel"
    feed: Annotated[bool, Field(description="Put their results into data.")] = False


class _Followed(Request):
    """What may follow on tasks that belong together: each at most once."""

    name: Annotated[StrictStr, Field(max_length=200)] = ""
    on_success: Annotated[TaskIn | None, Field(description="When all have succeeded.")] = None
    on_complete: Annotated[TaskIn | None, Field(description="When all have ended.")] = None
    on_failure: Annotated[TaskIn | None, Field(description="At the first dead letter.")] = None


class WorkflowIn(_Followed):
    """Tasks that wait for each other: all of them are accepted, or none."""

    nodes: Annotated[list[NodeIn], Field(min_length=1, max_length=MOST_TASKS)]


class BatchIn(_Followed):
    """Tasks that belong together: all of them are accepted, or none."""

    tasks: Annotated[list[TaskIn], Field(max_length=MOST_TASKS)] = []
    open: Annotated[bool, Field(description="More may be added, until it is closed.")] = False


class WorkflowFilter(BaseModel):
    """Which page of a workflow's tasks."""

    limit: Annotated[int, Field(ge=1, le=MOST_ITEMS)] = 50
    cursor: UUID | None = None


class ReasonIn(Request):
    """Why somebody does this; kept with the event."""

    reason: Reason = ""


class ReplayIn(Request):
    """What to change when a task is done again; left out, its payload stays as it was."""

    data: Annotated[Any, Field(description="The edited payload.")] = None
    id: Annotated[
        Annotated[StrictStr, Field(min_length=1, max_length=255), AfterValidator(_addressable)] | None,
        Field(description="An id for the new task: replaying again under it returns the first replay."),
    ] = None


class BulkActionIn(Request):
    """The same action for all tasks of a selection."""

    action: Literal["retry", "replay", "cancel", "discard"]
    filter: Annotated[Selection, Field(description="Which tasks; at least one condition.")]
    per_second: Annotated[
        StrictFloat | None, Field(gt=0, le=100_000, description="At most so many a second.")
    ] = None
    preview: Annotated[StrictBool, Field(description="Only say which tasks are meant.")] = False

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if not self.filter.model_fields_set:
            raise PydanticCustomError("everything", "name at least one condition in filter")
        return self


class LimitIn(Request):
    """How many tasks may wait in a queue: scheduled, retrying, or queued and not claimed."""

    waiting_limit: Annotated[StrictInt | None, Field(description=f"1 to {HIGHEST_LIMIT}; null: no limit.")]


class OverrideIn(Request):
    """Parts of a type's policy in place of those that its handler declares; null takes the override back."""

    override: Annotated[
        dict[str, Any] | None, Field(description="limits, fairness; a part left out is as declared.")
    ]


class NothingIn(Request):
    """An empty object."""


class LogFilter(BaseModel):
    """Which lines to list."""

    limit: Annotated[int, Field(ge=1, le=MOST_LINES)] = 200
    cursor: Annotated[int, Field(ge=0, le=2**63 - 1, description="The nextCursor of the page before.")] = 0


class TaskFilter(BaseModel):
    """Which tasks to list."""

    status: Annotated[
        list[str],
        Field(
            max_length=20,
            description="pending, inProgress, completed, failed, cancelled, expired, or a state; repeatable.",
        ),
    ] = []
    type: Annotated[str | None, Field(pattern=f"^{DURABLE_NAME.pattern}$")] = None
    queue: Annotated[str | None, Field(pattern=f"^{QUEUE_NAME.pattern}$")] = None
    limit: Annotated[int, Field(ge=1, le=MOST_ITEMS)] = 50
    cursor: Annotated[UUID | None, Field(description="The nextCursor of the page before.")] = None


# --- Answers ------------------------------------------------------------------------------------------


class Answer(BaseModel):
    """An answer, with the names of the wire."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class AttemptOut(Answer):
    """One execution of a task."""

    number: Annotated[int, Field(description="1 for the oldest.")]
    run: Annotated[int, Field(description="Its log lines name it.")]
    outcome: Literal["succeeded", "failed", "lost", "given_back", "cancelled", "snoozed"]
    worker: str | None
    worker_id: int
    started_at: str | None
    finished_at: str
    run_ms: int | None
    error: str | None
    traceback: str | None


class TaskItem(Answer):
    """A task in a list: without its attempts, which its own address shows."""

    id: UUID
    key: Annotated[str | None, Field(description="The id that the client gave it.")]
    type: str
    status: Literal["pending", "inProgress", "completed", "failed", "cancelled", "expired"]
    state: str
    priority: int
    queue: str
    data: Any
    result: Any
    error: str | None
    retries: Annotated[int, Field(description="Attempts beyond the first.")]
    losses: Annotated[int, Field(description="Own processes that died running it.")]
    worker_losses: Annotated[int, Field(description="Workers that died around it.")]
    snoozes: Annotated[int, Field(description="Times its handler has put it off.")]
    worker: Annotated[str | None, Field(description="Who holds it, or made the last attempt.")]
    assigned_to: Annotated[str | None, Field(description="The same as worker.")]
    created_at: str
    run_at: str | None
    started_at: str | None
    finished_at: str | None
    execution_time_ms: Annotated[
        int | None, Field(description="How long the last attempt ran, once it has ended.")
    ]
    wait_ms: Annotated[int | None, Field(description="From its acceptance to its last start.")]
    progress: Annotated[int | None, Field(description="Percent.")]
    progress_message: str | None
    eta_ms: Annotated[int | None, Field(description="By its progress, so long until it is done.")]
    replay_of: Annotated[UUID | None, Field(description="The task that it does again.")]
    cause: Annotated[str | None, Field(description="What dead tasks are grouped by.")]
    max_attempts: int


class LogLineOut(Answer):
    """One line that a handler has logged."""

    id: int
    at: str
    run: Annotated[int, Field(description="That of its attempt.")]
    level: Literal["debug", "info", "warning", "error"]
    logger: str
    message: str


class LogPage(Answer):
    """Some lines, oldest first, and where the next ones begin: ask again with it to follow a running task."""

    items: list[LogLineOut]
    next_cursor: int | None


class BulkActionOut(Answer):
    """The tasks that a bulk action is meant for, and the task that does it, unless this was a preview."""

    action: str
    matches: Annotated[int, Field(description="So many tasks now; counted up to 10,000.")]
    matches_is_exact: bool
    examples: list[UUID]
    task: UUID | None


class DeadLetterGroupOut(Answer):
    """Dead tasks of one type that died of the same."""

    type: str
    cause: Annotated[str | None, Field(description="The exception and where it came from.")]
    count: int
    first_at: str
    last_at: str
    examples: Annotated[list[UUID], Field(description="The newest.")]
    error: Annotated[str | None, Field(description="That of the newest.")]


class TaskOut(TaskItem):
    """A task with its attempts, oldest first; of a very long history only the newest."""

    obstacle: Annotated[str | None, Field(description="What keeps a waiting task from being started.")]
    backoff: Annotated[dict[str, Any] | None, Field(description="Its own, instead of its handler's policy.")]
    keep: Annotated[
        dict[str, Any] | None, Field(description="How long it is kept, by outcome, instead of the settings.")
    ]
    attempts: list[AttemptOut]


class TaskPage(Answer):
    """A page of tasks, newest first."""

    items: list[TaskItem]
    next_cursor: Annotated[str | None, Field(description="Of the next page; null on the last one.")]


class BulkOut(Answer):
    """The tasks that were accepted, in the order in which they were given."""

    ids: list[UUID]
    count: int


class WorkflowOut(Answer):
    """A workflow or a batch, and what has become of its tasks so far."""

    id: UUID
    name: str
    state: Literal["open", "running", "succeeded", "failed", "cancelled"]
    total: int
    succeeded: int
    dead: int
    cancelled: int
    expired: int
    open: Annotated[int, Field(description="Tasks that have not ended.")]
    callbacks: Annotated[dict[str, UUID], Field(description="The tasks that have followed on it.")]
    submitted_by: str | None
    created_at: str
    closed_at: str | None
    finished_at: str | None


class WorkerOut(Answer):
    """A worker that lives, or was lost a short while ago."""

    id: int
    name: str
    host: str
    pid: int
    state: Literal["running", "draining", "stopped", "lost"]
    status: Literal["Activo", "Cargando", "Inactivo", "Perdido"]
    queues: list[str]
    types: list[str]
    concurrency: int
    processes: int
    running: int
    claimed: int
    cpu_percent: float
    ram_mb: float
    started_at: str
    last_heartbeat: str
    last_heartbeat_ago: str
    loop_lag: Annotated[float, Field(description="Seconds.")]
    phase: str


class RetryRuleOut(Answer):
    """How failures by one class of exceptions are retried. Times are milliseconds."""

    error: str
    kind: str
    attempts: Annotated[int | None, Field(description="Null: as many as all others.")]
    base_ms: int
    cap_ms: int
    jitter: bool


class RetryOut(Answer):
    """How a type is retried. Times are milliseconds."""

    kind: str
    attempts: int
    base_ms: int
    cap_ms: int
    jitter: bool
    on: Annotated[list[RetryRuleOut], Field(description="Rules for failures by some exceptions.")]


class LimitsOut(Answer):
    """The time limits of one attempt, in milliseconds."""

    soft_ms: int | None
    hard_ms: int


class CircuitPolicyOut(Answer):
    """When the tasks of a type are held back because they fail."""

    failures: Annotated[int, Field(description="So many in a row open it.")]
    timeout_ms: Annotated[int, Field(description="An attempt that takes longer is a failure.")]
    reset_ms: int
    probes: int
    successes: int


class CircuitOut(Answer):
    """A circuit as it is now."""

    name: str
    state: Literal["CLOSED", "OPEN", "HALF_OPEN"]
    forced: Annotated[bool, Field(description="Set by an operator, until it is reset.")]
    failure_count: int
    success_count: int
    changed_at: str | None
    retry_at: str | None
    last_failure_time: str | None


class FlowOut(Answer):
    """What limits a type, and how its keys share."""

    limits: list[dict[str, Any]]
    fairness: dict[str, Any] | None


class TypeOut(Answer):
    """A type of task, and what its handler declares."""

    name: str
    description: str
    queue: str
    priority: int
    retry: RetryOut
    limits: LimitsOut
    keep: Annotated[
        dict[str, Any], Field(description="How long, or how many, ended tasks are kept, by outcome.")
    ]
    unique: Annotated[
        dict[str, Any] | None,
        Field(description="Which tasks are the same one, and what becomes of the second."),
    ]
    circuit: CircuitPolicyOut | None
    sensitive: Annotated[list[str], Field(description="Paths of values that are encrypted and masked.")]
    declared: Annotated[FlowOut, Field(description="The limits and fairness that the handler declares.")]
    effective: Annotated[FlowOut, Field(description="Those of now: an operator may have overridden them.")]
    override: Annotated[dict[str, Any] | None, Field(description="The parts that are overridden.")]
    in_flight: Annotated[int, Field(description="Tasks that are released, claimed or running.")]
    payload_schema: Annotated[dict[str, Any], Field(description="JSON Schema of data.")]


class QueueOut(Answer):
    """A queue as it is now."""

    name: str
    paused: bool
    paused_at: str | None
    pause_reason: str
    waiting_limit: Annotated[
        int | None, Field(description="How many may wait, those for later included; more are refused.")
    ]
    waiting: int
    waiting_is_exact: Annotated[bool, Field(description="False: there are more.")]
    later: Annotated[int, Field(description="Scheduled or retrying; counted up to 10,000.")]
    claimed: int
    running: int
    oldest_waiting_ms: int | None


class ProblemError(Answer):
    """One thing that is wrong, and where."""

    pointer: str
    code: str
    detail: str


class ProblemOut(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemError]
