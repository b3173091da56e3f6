"""Every order of the statements of several actors: each is paused before every statement and every commit.

An actor is a thread with a connection of its own. One of them at a time is told to go on, and runs to its
next pause, or until PostgreSQL says that it waits for somebody's lock. Then another one goes on. All choices
are tried, one after the other, from the same beginning.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
from django.db import connections

# What psycopg waits for: the end of a statement, and of a transaction. BEGIN alone locks and sees nothing.
PAUSES = {"_execute_gen", "_exit_gen", "_commit_gen"}
# Statements that touch no row that anybody else touches, so that their place in an order makes no difference.
ALONE = ("SET ", "NOTIFY", "LISTEN", "SELECT pid, backend_start", 'INSERT INTO "capataz_event"')

Act = Callable[[], Any]


class Actor:
    """A thread that stands still before every statement until it is told to go on."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._go = threading.Semaphore(0)
        self._stands = threading.Event()
        self._plays = False
        self._backend = 0
        self.passes: tuple[str, ...] = ()  # beginnings of statements before which it is not stopped
        self.has_waited = False  # for somebody's lock, since it began
        self._future: Future[Any] = Future()

    def pace(self, connection: psycopg.Connection[Any]) -> None:
        """Stop this actor before whatever it does on this connection from now on."""
        told: Any = connection
        if "wait" not in vars(connection):
            hurry(connection)
            told.wait = partial(_wait, connection, connection.wait)
        told.actor = self  # it may have been another one's in the order before

    def begin(self, act: Act) -> None:
        """Run up to the first statement."""
        self.has_waited = False
        self._stands.clear()
        self._future = self._thread.submit(self._play, act)
        self._stands.wait()

    def go_on(self) -> None:
        self._stands.clear()
        self._go.release()

    def stands(self, monitor: psycopg.Connection[Any]) -> bool:
        """Whether it has come to its next pause, or its end; False while it waits for somebody's lock."""
        waits = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        while not self._stands.wait(0.002):
            if monitor.execute(waits, [self._backend]).fetchall() == [(True,)]:
                self.has_waited = True
                return False
        return True

    @property
    def is_over(self) -> bool:
        return not self._plays

    def result(self) -> Any:
        return self._future.result()

    def leave(self) -> None:
        self._plays = False
        self._go.release()  # should a test have failed in between
        self._thread.submit(connections.close_all).result()
        self._thread.shutdown()

    def _play(self, act: Act) -> Any:
        self._plays = True
        try:
            return act()
        finally:
            self._plays = False
            self._stands.set()

    def pause(self, backend: int, work: Any) -> None:
        """Stand still before this work of this backend, if it is a pause."""
        if self._plays and _counts(work, (*ALONE, *self.passes)):
            self._backend = backend
            self._stands.set()
            self._go.acquire()


def _wait(connection: Any, go_on: Callable[..., Any], work: Any, *more: Any, **other: Any) -> Any:
    connection.actor.pause(connection.info.backend_pid, work)
    return go_on(work, *more, **other)


def hurry(connection: psycopg.Connection[Any]) -> None:
    """Commit without waiting for the disk: thousands of commits are made, and their order is what counts."""
    psycopg.Cursor(connection).execute("SET synchronous_commit = off")


def _counts(work: Any, passes: tuple[str, ...]) -> bool:
    if work.__name__ not in PAUSES:
        return False
    query = work.gi_frame.f_locals.get("query", "")
    text = query.decode() if isinstance(query, bytes) else str(query)
    return not text.startswith(passes)


def play(
    actors: Sequence[Actor], acts: Sequence[Act], choices: Sequence[int], monitor: psycopg.Connection[Any]
) -> list[tuple[int, int]]:
    """Play these acts in the order that the choices say, then in any; returns each (choice, of how many)."""
    made: list[tuple[int, int]] = []
    for actor, act in zip(actors, acts, strict=True):
        actor.begin(act)
    while True:
        ready = [each for each in actors if each.stands(monitor) and not each.is_over]
        if not ready:
            break
        choice = choices[len(made)] if len(made) < len(choices) else 0
        choice = min(choice, len(ready) - 1)  # a session that is ended ends when PostgreSQL comes to it
        made.append((choice, len(ready)))
        ready[choice].go_on()
        ready[choice].stands(monitor)
    assert all(each.is_over for each in actors), "everybody waits for somebody"
    return made


def every_order(
    actors: Sequence[Actor], scene: Callable[[], Sequence[Act]], check: Act, monitor: psycopg.Connection[Any]
) -> int:
    """Set the scene, play its acts and check what came of it, in every order; returns how many there are."""
    choices: list[int] | None = []
    count = 0
    while choices is not None:
        made = play(actors, scene(), choices, monitor)
        count += 1
        try:
            for actor in actors:
                actor.result()
            check()
        except Exception as error:
            error.add_note(f"in the order {[choice for choice, _ in made]}")
            raise
        choices = _next(made)
    return count


def _next(made: list[tuple[int, int]]) -> list[int] | None:
    """The choices after these, in the order of counting; None after the last."""
    while made and made[-1][0] == made[-1][1] - 1:
        made.pop()
    if not made:
        return None
    choice, _ = made.pop()
    return [*(each for each, _ in made), choice + 1]
