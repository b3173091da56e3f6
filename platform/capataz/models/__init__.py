"""The nouns: what Capataz keeps in PostgreSQL."""

from capataz.models.attempt import Attempt, Outcome
from capataz.models.circuit import Circuit, CircuitMark, CircuitState
from capataz.models.event import Event
from capataz.models.log_line import LogLine
from capataz.models.pruned import Pruned
from capataz.models.queue import Queue
from capataz.models.report import Report, ReportFile
from capataz.models.rollup import Rollup
from capataz.models.schedule import Schedule
from capataz.models.task import Task
from capataz.models.token import Role, Token
from capataz.models.type_policy import Rate, TypePolicy
from capataz.models.worker import Worker, WorkerState
from capataz.models.workflow import Dependency, Feeds, OnFailure, Workflow

__all__ = [
    "Attempt",
    "Circuit",
    "CircuitMark",
    "CircuitState",
    "Dependency",
    "Event",
    "Feeds",
    "LogLine",
    "OnFailure",
    "Outcome",
    "Pruned",
    "Queue",
    "Rate",
    "Report",
    "ReportFile",
    "Role",
    "Rollup",
    "Schedule",
    "Task",
    "Token",
    "TypePolicy",
    "Worker",
    "WorkerState",
    "Workflow",
]
