"""Lanes: which tasks of limited types are released, and in which turn.

The tasks of a type with limits or fairness wait in lanes: all of the type, or those of one key. A turn looks
at the first tasks of each lane that has room, so that a full lane costs one look however many wait in it.
Slots in use are counted in the transaction that takes more, under a lock for each type, so they cannot drift.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings

from capataz import flow as flows
from capataz.database import Connection
from capataz.flow import FREE, Flow, Limit
from capataz.lifecycle.crew import Crew
from capataz.priority import HIGHEST
from capataz.sql import statement

# The first half of the advisory lock under which the tasks of a limited type are released.
TYPE_LOCK = 0x43505A54

LANES = 200  # lanes of a queue that one turn looks at; the next one goes on after them
PARKED = 2000  # tasks that one turn moves to lanes
HELD_UP = 0.1  # seconds until the next look, while something waits for a slot of its limit
LOOK_FOR_AGED = 0.5  # seconds
# Of what is released, this share may go to those who have waited too long; the rest goes by priority.
AGED_SHARE = 0.25
KEPT = 10_000  # lanes whose turns are remembered before those are forgotten that make no difference


def aged_after() -> float:
    """Seconds after which a task has waited too long. It then has as long again to be started."""
    return settings.AGEING_MAX / 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting task that may be released if there is room. ``lane`` is None outside of lanes."""

    id: uuid.UUID
    type: str
    lane: str | None
    priority: int
    created_at: datetime
    weight: str | None = None
    aged: bool = False

    @property
    def order(self) -> tuple[int, datetime, uuid.UUID]:
        """Smaller goes first."""
        return -self.priority, self.created_at, self.id


@dataclass
class Allowance:
    """How much is left of one limit, for a type or one of its lanes."""

    left: float
    limit: Limit | None = None

    def cost(self, candidate: Candidate) -> float:
        """What this task takes of it."""
        if self.limit is None or self.limit.rate is None:
            return 1
        if isinstance(self.limit.weight, int):
            return self.limit.weight
        try:
            asked = float(candidate.weight or 1)
        except ValueError:
            return 1
        return min(max(asked, 1), self.limit.most_at_once) if math.isfinite(asked) else 1

    def wait(self, cost: float) -> float:
        """Seconds until so much is there, or until it is worth another look."""
        if self.limit is None or self.limit.rate is None:
            return HELD_UP
        return max(0.001, (cost - self.left) * self.limit.interval)


@dataclass
class Turns:
    """Whose turn it is among the lanes of a type: each release moves its lane back by what it took, divided
    by its weight. A lane in which nothing waited begins where the others are, and has saved nothing up."""

    _now: dict[str, float] = field(default_factory=dict)
    _next: dict[str, float] = field(default_factory=dict)

    def of(self, task_type: str, lane: str) -> float:
        """The turn of this lane; the smallest is next."""
        return max(self._next.get(lane, 0.0), self._now.get(task_type, 0.0))

    def take(self, task_type: str, lane: str, amount: float) -> None:
        """This lane has had its turn."""
        turn = self._now[task_type] = self.of(task_type, lane)
        self._next[lane] = turn + amount
        if len(self._next) > KEPT:
            self._forget()

    def _forget(self) -> None:
        """Forget the lanes that would begin where the others are, or all if that is too few."""
        behind = {
            name: turn
            for name, turn in self._next.items()
            if turn > self._now.get(name.split("|", 1)[0], 0.0)
        }
        self._next = behind if len(behind) <= KEPT // 2 else {}


class Allowances:
    """What is left of all limits in one turn. Everything chosen takes from it."""

    def __init__(self) -> None:
        self._of_type: dict[str, list[Allowance]] = {}
        self._of_lane: dict[str, list[Allowance]] = {}
        self.due = math.inf  # seconds until something that was refused is worth another look

    def add(self, task_type: str, lane: str | None, left: float, limit: Limit | None = None) -> None:
        """So much is left for a type, or for one of its lanes."""
        place = self._of_type if lane is None else self._of_lane
        place.setdefault(task_type if lane is None else lane, []).append(Allowance(left, limit))

    def of(self, task_type: str, lane: str | None) -> list[Allowance]:
        """All that a task of this type and lane takes from."""
        return self._of_type.get(task_type, []) + (self._of_lane.get(lane, []) if lane else [])

    def room(self, task_type: str, lane: str) -> float:
        """The most tasks that this lane may release."""
        for each in self.of(task_type, lane):
            if each.left < 1:
                self.due = min(self.due, each.wait(1))
        return min((each.left for each in self.of(task_type, lane)), default=math.inf)

    def take(self, candidate: Candidate) -> bool:
        """Whether everything has enough left for this task; then it has been taken."""
        all_of_it = self.of(candidate.type, candidate.lane)
        for each in all_of_it:
            cost = each.cost(candidate)
            if each.left < cost:
                self.due = min(self.due, each.wait(cost))
                return False
        for each in all_of_it:
            each.left -= each.cost(candidate)
        return True


def choose(
    candidates: Iterable[Candidate],
    room: float,
    *,
    aged: int,
    share: Callable[[str], float],
    weight: Callable[[str], float],
    allowances: Allowances,
    turns: Turns,
) -> list[Candidate]:
    """Of these tasks those that are released: first up to ``aged`` that have waited too long, oldest first.
    Then by priority and age, where each type stands for its most urgent task, and of its lanes those go that
    have had least. Within a lane nobody overtakes: the first who may not go ends it."""
    streams: dict[str, dict[str, deque[Candidate]]] = {}
    old: list[Candidate] = []
    for each in candidates:
        if each.aged:
            old.append(each)
        else:
            group = "" if each.lane is None else each.type
            streams.setdefault(group, {}).setdefault(each.lane or "", deque()).append(each)
    chosen: dict[uuid.UUID, Candidate] = {}
    for each in sorted(old, key=lambda each: (each.created_at, each.id)):
        if len(chosen) < aged and room > 0 and each.id not in chosen and allowances.take(each):
            chosen[each.id] = each
            room -= share(each.type)
    while room > 0 and streams:
        group = min(streams, key=lambda name: min(lane[0].order for lane in streams[name].values()))
        lanes = streams[group]
        name = min(lanes, key=lambda lane: (turns.of(group, lane), lanes[lane][0].order))
        first = lanes[name].popleft()
        if first.id not in chosen:
            if allowances.take(first):
                chosen[first.id] = first
                room -= share(first.type)
                if group:
                    turns.take(group, name, share(first.type) / weight(name))
            else:
                lanes[name].clear()
        if not lanes[name]:
            del lanes[name]
            if not lanes:
                del streams[group]
    return list(chosen.values())


class Lanes:
    """What a dispatcher remembers of the lanes from one turn to the next; nothing that has to be right."""

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        self._admitted: dict[str, int] = {}
        self._turns = Turns()
        self._after: dict[str, str] = {}  # the last lane of a queue that was looked at
        self._aged: set[str] = set()  # queues in which somebody has waited too long
        self._looked_for_aged: dict[str, float] = {}
        self._credit: dict[str, float] = {}  # releases that those who waited too long may have
        self._parking: set[str] = set()
        self._unclaimed: set[str] = set()  # queues whose types have spent a rate and are not claimed yet
        self.due = math.inf  # when another look is worth it, by time.monotonic()

    @property
    def single(self) -> set[str]:
        """Types whose tasks are announced one by one."""
        return {name for name, flow in self.flows.items() if flow.limits}

    def begin(self) -> None:
        """A turn begins."""
        self.due = math.inf

    def admit(self, more: dict[str, int]) -> None:
        """From here on, so many more tasks of these types may be in flight, whatever their limits: 0 holds a
        type back. A type that is not named is free."""
        self._admitted = more

    def keep_house(self, connection: Connection, most: int) -> None:
        """What need not be done in each turn."""
        given = {"aged": aged_after(), "most": most}
        connection.execute(statement("withdraw_aged"), given)
        self._aged = {name for [name] in connection.execute(statement("aged_queues"), given)}
        connection.execute(statement("forget_rates"), given)

    def free(self, types: Iterable[str]) -> list[str]:
        """Those of these types that may be released without a look at lanes."""
        return sorted(each for each in types if each not in self.flows and each not in self._admitted)

    def chooses(self, queue: str, laned: bool) -> bool:
        """Whether what this queue releases has to be chosen task by task."""
        return laned or queue in self._aged or queue in self._unclaimed

    def watched(self) -> set[str]:
        """Queues to look at even if nothing waits in them."""
        return set(self._unclaimed)

    def park(self, connection: Connection, queue: str, types: Iterable[str], *, now: bool) -> None:
        """Move what waits before others without being free to its lanes, ``now`` or if some was just met."""
        if not now and queue not in self._parking:
            return
        parameters = {
            "queue": queue,
            "free": self.free(types),
            "types": list(self.flows),
            "paths": [flow.path for flow in self.flows.values()],
            "most": PARKED,
        }
        moved = connection.execute(statement("park"), parameters).rowcount
        if moved:
            self._parking.add(queue)
            self.due = time.monotonic()
        else:
            self._parking.discard(queue)

    def release(
        self, connection: Connection, queue: str, crew: Crew, room: float, verify: float
    ) -> list[tuple[Any, ...]]:
        """Release what is chosen; the rows of ``release_chosen``, those that have waited too long as urgent.
        In the caller's transaction, which holds the queue's lock."""
        if room <= 0 and queue not in self._unclaimed:
            return []
        known = crew.types[queue]
        names = self._some_lanes(connection, queue)
        by_lane = {name: name.split("|", 1)[0] for name in names}
        stale = [name for name in names if self._is_stale(name)]
        if stale:
            self._change(connection, queue, stale)
        limited = sorted(
            ({*by_lane.values()} | self._rated(queue)) & (self.flows.keys() | self._admitted.keys())
        )
        mine = self._lock(connection, limited)
        open_lanes = [
            name
            for name in names
            if name not in stale
            and by_lane[name] in known
            and (by_lane[name] not in limited or by_lane[name] in mine)
        ]
        allowances, rates = self._allowances(connection, mine, open_lanes)
        candidates = self._candidates(connection, queue, crew, room, open_lanes, allowances)
        credit = self._credit.get(queue, 1.0)
        chosen = choose(
            candidates,
            room,
            aged=int(credit),
            share=lambda task_type: 1 / crew.bundle_size(task_type),
            weight=lambda lane: self.flows.get(lane.split("|", 1)[0], FREE).weight(flows.key_of(lane)),
            allowances=allowances,
            turns=self._turns,
        )
        if math.isfinite(allowances.due):
            self.due = min(self.due, time.monotonic() + allowances.due)
        released = {each.id: each for each in chosen}
        parameters = {"ids": list(released), "queue": queue, "verify": verify}
        rows = connection.execute(statement("release_chosen"), parameters).fetchall() if chosen else []
        went = [released[row[0]] for row in rows]
        rates.spend(connection, went)
        self._remember_unclaimed(queue, rates, went)
        self._credit[queue] = min(4.0, credit + AGED_SHARE * len(rows)) - sum(each.aged for each in went)
        self._credit[queue] = max(0.0, self._credit[queue])
        return [(*row[:3], HIGHEST if released[row[0]].aged else row[3], *row[4:]) for row in rows]

    def _some_lanes(self, connection: Connection, queue: str) -> list[str]:
        after = self._after.get(queue, "")
        given = {"queue": queue, "after": after, "most": LANES}
        names = [name for [name] in connection.execute(statement("lanes"), given)]
        if len(names) < LANES and after:
            given = {**given, "after": "", "most": LANES - len(names)}
            names += [name for [name] in connection.execute(statement("lanes"), given) if name <= after]
        self._after[queue] = names[-1] if len(names) == LANES else ""
        return names

    def _is_stale(self, name: str) -> bool:
        task_type, path, _ = name.split("|", 2)
        return task_type in self.flows and self.flows[task_type].path != path

    def _change(self, connection: Connection, queue: str, stale: list[str]) -> None:
        paths = [self.flows[name.split("|", 1)[0]].path for name in stale]
        each = max(1, PARKED // len(stale))
        given = {"queue": queue, "lanes": stale, "paths": paths, "most": each}
        connection.execute(statement("change_lanes"), given)
        self.due = time.monotonic()

    def _lock(self, connection: Connection, types: list[str]) -> set[str]:
        if not types:
            return set()
        given = {"lock": TYPE_LOCK, "types": types}
        mine = {name for [name] in connection.execute(statement("lock_types"), given)}
        if len(mine) < len(types):
            self.due = min(self.due, time.monotonic() + HELD_UP)
        return mine

    def _allowances(
        self, connection: Connection, mine: set[str], lanes: list[str]
    ) -> tuple[Allowances, Rates]:
        """What is left for these types, whose locks are held."""
        allowances, rates = Allowances(), Rates()
        limited = {name: self.flows[name] for name in mine if name in self.flows and self.flows[name].limits}
        used: dict[tuple[str, str], tuple[int, int]] = {}
        if limited:
            given = {"types": list(limited), "paths": [flow.path for flow in limited.values()]}
            for task_type, lane, count, unclaimed in connection.execute(statement("in_use"), given):
                used[task_type, lane] = count, unclaimed
                total, waiting = used.get((task_type, ""), (0, 0))
                used[task_type, ""] = total + count, waiting + unclaimed
        lanes_of: dict[str, set[str]] = {name: set() for name in limited}
        for lane in [*lanes, *(lane for _, lane in used if lane)]:
            task_type = lane.split("|", 1)[0]
            if task_type in lanes_of:
                lanes_of[task_type].add(lane)
        for task_type, flow in limited.items():
            for limit in flow.limits:
                for lane in sorted(lanes_of[task_type]) if limit.per else [""]:
                    count, unclaimed = used.get((task_type, lane), (0, 0))
                    if limit.concurrency is not None:
                        allowances.add(task_type, lane or None, limit.concurrency - count)
                    if limit.rate is not None:
                        rates.watch(task_type, lane, limit, unclaimed)
        for task_type, most in self._admitted.items():
            allowances.add(task_type, None, most)
        rates.read(connection, allowances)
        return allowances, rates

    def _candidates(
        self,
        connection: Connection,
        queue: str,
        crew: Crew,
        room: float,
        lanes: list[str],
        allowances: Allowances,
    ) -> list[Candidate]:
        rooms: dict[str, int] = {}
        # Many lanes share the room, and each need not offer all of it.
        offered = max(2.0, 50 * room / max(50, len(lanes)))
        for name in lanes:
            task_type = name.split("|", 1)[0]
            left = allowances.room(task_type, name)
            if left >= 1:
                rooms[name] = math.ceil(min(left, offered * crew.bundle_size(task_type)))
        free = self.free(crew.types[queue])
        now = time.monotonic()
        look = queue in self._aged or now - self._looked_for_aged.get(queue, -math.inf) >= LOOK_FOR_AGED
        if look:
            self._looked_for_aged[queue] = now
        parameters = {
            "queue": queue,
            "lanes": list(rooms),
            "rooms": list(rooms.values()),
            "weights": [self._weight_place(name) for name in rooms],
            "types": free,
            "most": math.ceil(room * max((crew.bundle_size(each) for each in free), default=1)),
            "look_for_aged": look,
            "aged": aged_after(),
            "share": 4,
        }
        return [Candidate(*row) for row in connection.execute(statement("candidates"), parameters)]

    def _weight_place(self, lane: str) -> str | None:
        for limit in self.flows.get(lane.split("|", 1)[0], FREE).limits:
            if isinstance(limit.weight, str):
                return limit.weight.removeprefix("payload.")
        return None

    def _rated(self, queue: str) -> set[str]:
        """Types with a rate, where tasks of some may be unclaimed."""
        if queue not in self._unclaimed:
            return set()
        return {name for name, flow in self.flows.items() if any(limit.rate for limit in flow.limits)}

    def _remember_unclaimed(self, queue: str, rates: Rates, went: list[Candidate]) -> None:
        if rates.unclaimed or any(each.type in rates.types for each in went):
            self._unclaimed.add(queue)
            self.due = min(self.due, time.monotonic() + HELD_UP)
        else:
            self._unclaimed.discard(queue)


@dataclass
class _Spent:
    """How far one rate is spent: ``seconds`` in advance, as GCRA counts."""

    limit: Limit
    unclaimed: int
    seconds: float = 0.0


class Rates:
    """The rates of the types that a turn looks at. What is released and not claimed may start at any moment,
    so its share does not become unused again meanwhile."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, str, str], _Spent] = {}

    @property
    def unclaimed(self) -> bool:
        """Whether something that has spent of a rate is not claimed yet."""
        return any(each.unclaimed for each in self._spent.values())

    @property
    def types(self) -> set[str]:
        """The types that have rates."""
        return {task_type for task_type, _, _ in self._spent}

    def watch(self, task_type: str, lane: str, limit: Limit, unclaimed: int) -> None:
        """This type, or lane of it, has this rate, and so many released tasks that nobody has claimed."""
        self._spent[task_type, limit.rate or "", lane] = _Spent(limit, unclaimed)

    def read(self, connection: Connection, allowances: Allowances) -> None:
        """Look up how far they are spent, and allow what is left."""
        if not self._spent:
            return
        found = connection.execute(statement("rates"), _named(self._spent)).fetchall()
        seconds = {(name, key): value for name, key, value in found}
        for (task_type, rate, lane), each in self._spent.items():
            each.seconds = max(0.0, seconds.get((rate_name(task_type, rate), lane), 0.0))
            weight = each.limit.weight if isinstance(each.limit.weight, int) else 1
            each.seconds = max(each.seconds, each.unclaimed * weight * each.limit.interval)
            left = each.limit.most_at_once - each.seconds / each.limit.interval
            allowances.add(task_type, lane or None, left + 1e-6, each.limit)

    def spend(self, connection: Connection, went: list[Candidate]) -> None:
        """Write down what these tasks have spent, and what others hold that are not claimed."""
        written: dict[tuple[str, str, str], float] = {}
        for place, each in self._spent.items():
            task_type, _, lane = place
            allowance = Allowance(0, each.limit)
            cost = sum(
                allowance.cost(one) for one in went if one.type == task_type and lane in ("", one.lane)
            )
            if cost or each.unclaimed:
                written[place] = each.seconds + cost * each.limit.interval
        if written:
            parameters = {**_named(written), "seconds": list(written.values())}
            connection.execute(statement("spend_rates"), parameters)


def _named(rates: Collection[tuple[str, str, str]]) -> dict[str, Any]:
    names = [rate_name(task_type, rate) for task_type, rate, _ in rates]
    return {"names": names, "keys": [lane for _, _, lane in rates]}


def rate_name(task_type: str, rate: str) -> str:
    """Under which name this rate of a type is kept."""
    return f"type {task_type} {rate}"
