"""What an operator has set for a type in place of what its handler declares, and how far rates are spent."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class TypePolicy(models.Model):
    """The overridden parts of one type's policy. A part that is not named is as declared."""

    name = models.CharField("type", max_length=64, primary_key=True)
    override = models.JSONField(
        default=dict,
        help_text="Parts in place of those declared, such as"
        ' {"limits": [{"concurrency": 5}]}; [] lifts all limits.',
    )
    changed_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "type policies"

    def __str__(self) -> str:
        return self.name


class Rate(models.Model):
    """How far one rate is spent: the time from which on it is unused again, as GCRA counts."""

    pk = models.CompositePrimaryKey("name", "key")
    name = models.CharField(max_length=200)
    key = models.TextField()
    unused_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} {self.key}"
