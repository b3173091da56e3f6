"""A circuit: whether calls to one other side are made, as all processes share it."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models

# Before the name of a type, in the name of its circuit. No host begins like this.
TYPE = "type:"


class CircuitState(models.TextChoices):
    """Whether calls go through."""

    CLOSED = "CLOSED", "Closed"  # all
    OPEN = "OPEN", "Open"  # none
    HALF_OPEN = "HALF_OPEN", "Half open"  # a few, as probes


class Circuit(models.Model):
    """One circuit. What operators have set stays until they reset it."""

    name = models.CharField(max_length=255, primary_key=True)
    state = models.CharField(max_length=16, choices=CircuitState.choices, db_default=CircuitState.CLOSED)
    forced = models.BooleanField(db_default=False, help_text="Set by an operator, until it is reset.")
    failures = models.IntegerField(db_default=0, help_text="Failures in a row.")
    successes = models.IntegerField(db_default=0, help_text="Successes since it was half open.")
    openings = models.IntegerField(db_default=0, help_text="Times it has opened since it was closed.")
    leases = ArrayField(
        models.DateTimeField(), db_default=[], help_text="Until when a probe of each call may last."
    )
    changed_at = models.DateTimeField(null=True, blank=True)
    retry_at = models.DateTimeField(null=True, blank=True, help_text="When probes are let through.")
    last_failure_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def obstacle(self) -> str:
        """What a circuit that is not closed means to what waits behind it."""
        if self.state == CircuitState.HALF_OPEN:
            return f"the circuit {self.name} is half open: only a few are let through"
        if self.forced:
            return f"the circuit {self.name} was opened by an operator"
        until = f" until {self.retry_at:%Y-%m-%dT%H:%M:%SZ}" if self.retry_at else ""
        return f"the circuit {self.name} is open{until}"


class CircuitMark(models.Model):
    """How an attempt of a type with a circuit has ended, until the dispatcher has taken it into account."""

    id = models.BigAutoField(primary_key=True)
    circuit = models.CharField(max_length=255, db_index=True)
    failed = models.BooleanField()
    started_at = models.DateTimeField()
    at = models.DateTimeField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.circuit} {'failed' if self.failed else 'succeeded'}"
