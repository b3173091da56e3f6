"""A task: one piece of work that someone submitted. Its row is the truth; messages only point to it."""

from __future__ import annotations

import uuid
from datetime import timedelta

import uuid_utils.compat
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from capataz import priority
from capataz.models.circuit import TYPE, Circuit, CircuitState
from capataz.models.queue import Queue
from capataz.models.worker import Worker, WorkerState
from capataz.states import FINAL, HELD, WIRE, State, states_of


def new_task_id() -> uuid.UUID:
    """A UUIDv7: new rows land at the end of the index, and ids sort by age."""
    return uuid_utils.compat.uuid7()


class TaskQuerySet(models.QuerySet["Task"]):
    """Questions about tasks."""

    def with_status(self, *statuses: str) -> TaskQuerySet:
        """Tasks in any of these wire statuses or states. Raises ValueError for an unknown one."""
        return self.filter(state__in={state for status in statuses for state in states_of(status)})

    def due(self) -> TaskQuerySet:
        """Waiting tasks whose time has come."""
        return self.filter(state__in=[State.SCHEDULED, State.RETRYING], run_at__lte=Now())

    def held_by(self, worker_id: int) -> TaskQuerySet:
        """Tasks that this worker has claimed or runs."""
        return self.filter(worker_id=worker_id, released_at__isnull=False)

    def in_flight(self) -> dict[str, int]:
        """How many tasks of each type are released, claimed or running."""
        out = self.filter(released_at__isnull=False).values_list("type").annotate(models.Count("pk"))
        return dict(out.order_by())

    def called(self, name: str) -> TaskQuerySet:
        """The task of this id: its UUID, or the id that the client gave it."""
        try:
            return self.filter(pk=uuid.UUID(name))
        except ValueError:
            return self.filter(key=name)


class Task(models.Model):
    """One piece of work. ``run`` is the fence: whoever ends the task must name the run it was given."""

    id = models.UUIDField(primary_key=True, default=new_task_id, editable=False)
    key = models.CharField("client's id", max_length=255, null=True, blank=True, editable=False)
    type = models.CharField(max_length=64)
    queue = models.CharField(max_length=64)
    priority = models.SmallIntegerField(default=priority.DEFAULT)
    state = models.CharField(max_length=16, choices=State.choices, default=State.QUEUED)
    payload = models.JSONField()
    result = models.JSONField(null=True, blank=True)
    error = models.TextField(null=True, blank=True, help_text="Why the last attempt failed.")

    cause = models.CharField(
        max_length=160, null=True, blank=True, help_text="What dead letters are grouped by."
    )

    attempts = models.SmallIntegerField(db_default=0, help_text="Attempts that failed or succeeded.")
    max_attempts = models.SmallIntegerField(db_default=1)
    losses = models.SmallIntegerField(db_default=0, help_text="Own processes that died running it.")
    worker_losses = models.SmallIntegerField(db_default=0, help_text="Workers that died around it.")
    orphaned = models.SmallIntegerField(
        db_default=0, help_text="Workers that died holding it before it was shown as running."
    )
    given_back = models.SmallIntegerField(db_default=0, help_text="Times a stopping worker gave it back.")
    snoozes = models.SmallIntegerField(db_default=0, help_text="Times its handler has put it off.")
    backoff = models.TextField(
        null=True, blank=True, help_text="How long it waits after a failure, instead of its handler's policy."
    )
    keep = models.JSONField(
        null=True, blank=True, help_text="How long it is kept, by outcome, instead of the settings."
    )

    lane = models.TextField(
        null=True,
        blank=True,
        editable=False,
        db_collation="C",
        help_text="Where it waits if its type is limited: with all of its type, or of its key.",
    )
    run = models.BigIntegerField(null=True, blank=True)
    worker_id = models.BigIntegerField(null=True, blank=True)
    released_at = models.DateTimeField(null=True, blank=True)
    verify_at = models.DateTimeField(null=True, blank=True)
    publishes = models.SmallIntegerField(db_default=0)

    created_at = models.DateTimeField(db_default=Now(), editable=False)
    run_at = models.DateTimeField(null=True, blank=True, help_text="Not before this time.")
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Not to be started after this time.")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)

    soft_time_limit = models.FloatField(null=True, blank=True, help_text="Seconds.")
    time_limit = models.FloatField(null=True, blank=True, help_text="Seconds.")
    progress = models.SmallIntegerField(null=True, blank=True, help_text="Percent.")
    progress_message = models.CharField(max_length=200, null=True, blank=True)
    submitted_by = models.CharField(max_length=100, null=True, blank=True)
    schedule_id = models.BigIntegerField(null=True, blank=True)
    replay_of = models.UUIDField(null=True, blank=True, help_text="The task that it does again.")
    workflow_id = models.UUIDField(null=True, blank=True)
    node = models.CharField(max_length=200, null=True, blank=True, help_text="Its name in its workflow.")
    # What its workflow knows of it: the end of what time, and as what it was counted. Where settled_at
    # differs from finished_at, ``settling`` has something to do: an index made by hand (migration 0012) finds
    # it.
    settled_at = models.DateTimeField(null=True, blank=True, editable=False)
    settled_as = models.CharField(max_length=16, null=True, blank=True, editable=False)

    unique_key = models.CharField(max_length=32, null=True, blank=True, editable=False)
    unique_scope = models.CharField(
        max_length=16, null=True, blank=True, help_text="The states in which it holds its unique key."
    )
    unique_until = models.DateTimeField(
        null=True, blank=True, help_text="When it holds its unique key no longer."
    )
    unique_changes = models.IntegerField(
        null=True, blank=True, help_text="Later submissions that were merged into it."
    )

    objects = TaskQuerySet.as_manager()

    class Meta:
        # Three indexes are written by a task on its usual way and no more; rows enter the others rarely or,
        # as with the last, once.
        indexes = [
            models.Index(
                "queue",
                models.F("priority").desc(),
                "created_at",
                "id",
                name="capataz_task_waiting",
                condition=Q(state="queued", released_at__isnull=True, lane__isnull=True),
            ),
            # The same for what waits in lanes; other tasks never enter it.
            models.Index(
                "queue",
                "lane",
                models.F("priority").desc(),
                "created_at",
                "id",
                name="capataz_task_lanes",
                condition=Q(state="queued", released_at__isnull=True, lane__isnull=False),
            ),
            models.Index("run_at", name="capataz_task_due", condition=Q(state__in=["scheduled", "retrying"])),
            models.Index(
                "worker_id", "queue", name="capataz_task_out", condition=Q(released_at__isnull=False)
            ),
            # Few rows ever enter this one: the tasks that a person may want to find again.
            models.Index(
                "state",
                models.F("id").desc(),
                name="capataz_task_unsuccessful",
                condition=Q(state__in=["dead", "cancelled", "expired"]),
            ),
            models.Index(
                "schedule_id",
                name="capataz_task_of_schedule",
                condition=Q(schedule_id__isnull=False, finished_at__isnull=True),
            ),
            models.Index(
                "expires_at",
                name="capataz_task_deadline",
                condition=Q(expires_at__isnull=False, finished_at__isnull=True),
            ),
            # Dead letters by what they died of.
            models.Index(
                "type", "cause", "finished_at", name="capataz_task_cause", condition=Q(state="dead")
            ),
            # Those of one queue, for its limit.
            models.Index(
                "queue", name="capataz_task_later", condition=Q(state__in=["scheduled", "retrying"])
            ),
            # Those with a retention of their own, the newest of a type and outcome first.
            models.Index(
                "type",
                "state",
                models.F("finished_at").desc(),
                name="capataz_task_kept",
                condition=Q(keep__isnull=False, finished_at__isnull=False),
            ),
            models.Index(
                "workflow_id",
                "id",
                name="capataz_task_of_workflow",
                condition=Q(workflow_id__isnull=False),
            ),
            # The oldest of an outcome, for pruning: whatever else is kept, and whatever ids clients chose.
            models.Index(
                "state", "finished_at", name="capataz_task_ended", condition=Q(finished_at__isnull=False)
            ),
        ]
        constraints = [
            models.UniqueConstraint("key", name="client_id_is_unique", condition=Q(key__isnull=False)),
            # A task leaves it in the very UPDATE that moves it out of the states in which it holds its key.
            models.UniqueConstraint(
                "unique_key",
                name="capataz_task_unique",
                condition=Q(unique_key__isnull=False)
                & (
                    Q(finished_at__isnull=True)
                    | Q(unique_scope__in=["always", "trailing"])
                    | Q(state="dead", unique_scope="until_success")
                ),
            ),
            models.CheckConstraint(
                name="has_a_run_and_a_worker_exactly_while_held",
                condition=Q(state__in=sorted(HELD), run__isnull=False, worker_id__isnull=False)
                | (~Q(state__in=sorted(HELD)) & Q(run__isnull=True, worker_id__isnull=True)),
            ),
            models.CheckConstraint(
                name="finished_at_is_set_exactly_when_final",
                condition=Q(state__in=sorted(FINAL), finished_at__isnull=False)
                | (~Q(state__in=sorted(FINAL)) & Q(finished_at__isnull=True)),
            ),
            models.CheckConstraint(
                name="is_released_while_held_and_never_unless_queued_or_held",
                condition=Q(state="queued")
                | Q(state__in=sorted(HELD), released_at__isnull=False)
                | (~Q(state__in=["queued", *sorted(HELD)]) & Q(released_at__isnull=True)),
            ),
            models.CheckConstraint(
                name="priority_is_0_to_10",
                condition=Q(priority__range=(priority.LOWEST, priority.HIGHEST)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.key or self.id}"

    @property
    def status(self) -> str:
        """The status that clients see."""
        return WIRE[State(self.state)]

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to this task unless a person asks for it."""
        return self.state in FINAL

    @property
    def run_time(self) -> timedelta | None:
        """How long the last attempt ran, if it has ended."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at

    def obstacle(self) -> str | None:
        """What keeps this task from being started, whenever its turn comes; None if nothing does."""
        if self.state == State.BLOCKED:
            return self._open_parents()
        if self.state != State.QUEUED:
            return None
        if Queue.objects.filter(name=self.queue, paused_at__isnull=False).exists():
            return f"the queue {self.queue} is paused"
        crew = Worker.objects.filter(state=WorkerState.RUNNING, queues__contains=[self.queue])
        if not crew.filter(types__contains=[self.type]).exists():
            return f"no running worker of the queue {self.queue} knows the type {self.type}"
        circuit = Circuit.objects.filter(pk=TYPE + self.type).exclude(state=CircuitState.CLOSED).first()
        if circuit is not None:
            return circuit.obstacle()
        return None

    def _open_parents(self) -> str:
        from capataz.models.workflow import Dependency

        open_ones = Dependency.objects.filter(child_id=self.pk, outcome__isnull=True).order_by("position")
        names = list(open_ones.values_list("name", flat=True)[:6])
        more = ", and others" if len(names) > 5 else ""
        return f"it waits for {', '.join(names[:5])}{more}" if names else "its parents have just ended"
