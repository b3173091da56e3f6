"""The nouns: what Capataz keeps in PostgreSQL."""

from capataz.models.attempt import Attempt, Outcome
from capataz.models.event import Event
from capataz.models.queue import Queue
from capataz.models.schedule import ScheduleMark
from capataz.models.task import Task
from capataz.models.token import Role, Token
from capataz.models.worker import Worker, WorkerState

__all__ = [
    "Attempt",
    "Event",
    "Outcome",
    "Queue",
    "Role",
    "ScheduleMark",
    "Task",
    "Token",
    "Worker",
    "WorkerState",
]
