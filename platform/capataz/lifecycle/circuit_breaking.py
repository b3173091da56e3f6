"""Circuit breaking: which types are held back because their attempts fail, and what operators decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db import transaction

from capataz import circuits, database, handlers
from capataz.circuits import COLUMNS, HALF_OPEN, OPEN, Standing
from capataz.database import Connection
from capataz.lifecycle import wakeup
from capataz.models import Circuit, CircuitState
from capataz.models.circuit import TYPE
from capataz.policy import Circuit as Policy
from capataz.sql import statement


def policies() -> dict[str, Policy]:
    """What is declared for the types that have a circuit."""
    return {each.name: each.circuit for each in handlers.registered() if each.circuit is not None}


def declare(connection: Connection) -> None:
    """The circuits of these types exist, each with its row."""
    names = [TYPE + each for each in sorted(policies())]
    connection.execute(
        "INSERT INTO capataz_circuit (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [names]
    )


def mark(connection: Connection, marks: Sequence[tuple[str, bool, float]]) -> None:
    """Note how attempts of types with a circuit have ended: (type, failed, seconds since it started)."""
    columns = {
        "circuits": [TYPE + each[0] for each in marks],
        "failed": [each[1] for each in marks],
        "started_ago": [each[2] for each in marks],
    }
    connection.execute(statement("mark_circuits"), columns)


def gates(connection: Connection, types: Iterable[str]) -> dict[str, int]:
    """How many more tasks may be in flight, of those of these types that may not all be; call it in the
    transaction that releases them.

    Whoever releases such tasks holds the circuit's row meanwhile, so that neither a change nor another
    dispatcher's release can come in between. Of a circuit that somebody else holds, none may be released.
    """
    declared = policies()
    names = [TYPE + each for each in types if each in declared]
    if not names:
        return {}
    query = f"SELECT {', '.join(COLUMNS)} FROM capataz_circuit WHERE name = ANY(%s) FOR UPDATE SKIP LOCKED"  # noqa: S608
    standings = {row[0]: Standing(*row) for row in connection.execute(query, [names])}
    settled = _settle(connection, standings, declared)
    found = {}
    for name in names:
        standing, task_type = settled.get(name), name.removeprefix(TYPE)
        if standing is None or standing.state == OPEN:
            found[task_type] = 0
        elif standing.state == HALF_OPEN:
            out = connection.execute(
                statement("probes_out"), {"type": task_type, "since": standing.changed_at}
            ).fetchall()
            found[task_type] = max(0, declared[task_type].probes - out[0][0])
    return found


def _settle(
    connection: Connection, standings: dict[str, Standing], declared: dict[str, Policy]
) -> dict[str, Standing]:
    """These circuits, which are locked, after all that was noted since."""
    settled = dict(standings)
    rows = connection.execute(statement("take_marks"), {"circuits": sorted(standings)}).fetchall()
    for _, name, failed, started, at in rows:
        policy = declared[name.removeprefix(TYPE)]
        settled[name] = settled[name].judge(policy, failed=failed, started=started, now=at)
    [[now]] = connection.execute("SELECT now()").fetchall()
    for name, was in standings.items():
        becomes = settled[name] = settled[name].ripen(now)
        circuits.store(connection, was, becomes)
        if becomes.state not in (was.state, CircuitState.CLOSED):
            connection.execute(statement("withdraw_type"), {"type": name.removeprefix(TYPE)})
    return settled


def force_open(circuit: Circuit, *, reason: str = "", by: str = "") -> Circuit:
    """Let no call through until somebody resets it. Released tasks of the type wait again."""
    return _force(circuit, CircuitState.OPEN, forced=True, reason=reason, by=by)


def force_closed(circuit: Circuit, *, reason: str = "", by: str = "") -> Circuit:
    """Let every call through, however many fail, until somebody resets it."""
    return _force(circuit, CircuitState.CLOSED, forced=True, reason=reason, by=by)


def reset(circuit: Circuit, *, reason: str = "", by: str = "") -> Circuit:
    """Closed, with nothing counted; from here on it opens and closes by itself."""
    return _force(circuit, CircuitState.CLOSED, forced=False, reason=reason, by=by)


def _force(circuit: Circuit, state: CircuitState, *, forced: bool, reason: str, by: str) -> Circuit:
    with transaction.atomic():
        database.be_impatient()
        connection = database.driver()
        was, now = circuits.lock(connection, circuit.name)
        becomes = Standing(
            circuit.name, state.value, forced, changed_at=now, last_failure_at=was.last_failure_at
        )
        if (was.state, was.forced, was.failures) != (becomes.state, forced, 0):
            circuits.store(connection, was, becomes, **{"by": by, **({"reason": reason} if reason else {})})
            if circuit.name.startswith(TYPE) and state is CircuitState.OPEN:
                connection.execute(statement("withdraw_type"), {"type": circuit.name.removeprefix(TYPE)})
            transaction.on_commit(wakeup.ring)
    circuit.refresh_from_db()
    return circuit
