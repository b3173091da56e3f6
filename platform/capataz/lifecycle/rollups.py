"""Roll-ups: each commit that ends attempts adds a row of its own, and short rows are folded into longer ones.

Adding needs no lock on a row that others add to as well; folding is done by whoever dispatches.
"""

from __future__ import annotations

from datetime import timedelta

from django.db.models.functions import Now

from capataz.database import Connection
from capataz.models import Rollup
from capataz.sql import statement

# (seconds of the short ones, of the long ones, age in seconds from which on they are folded). A page that
# shows minutes or hours finds at most a few hundred rows for each queue and type.
STEPS = (
    (0, 10, 20),
    (10, 60, 2 * 3600),
    (60, 3600, 8 * 86_400),
)
MOST = 10_000  # rows folded by one statement


def fold(connection: Connection) -> None:
    """Fold what is old enough, each step in a transaction of its own."""
    for short, long, age in STEPS:
        connection.execute(
            statement("fold_rollups"), {"short": short, "long": long, "age": age, "most": MOST}
        )


def prune(days: float) -> None:
    """Delete the roll-ups that are older than so many days."""
    Rollup.objects.filter(at__lt=Now() - timedelta(days=days)).delete()
