"""``manage.py watch DIR``: submits ``frontmatter_index`` whenever something changes below a folder."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connection
from watchfiles import watch
from watchfiles._rust_notify import WatchfilesRustInternalError

from capataz.errors import ConfigurationError, InvalidSubmission, QueueFull
from capataz.lifecycle.submission import submit
from capataz.uniqueness import Debounce, Policy, Throttle
from tasks.globs import check_glob, matches
from tasks.operations import SOURCES
from tasks.roots import DEEPEST_FOLDER, Location, RefusedPath, holding, locate

TYPE = "frontmatter_index"
# Milliseconds: how long changes are gathered at most, how long none has to come, and how often it is looked
# whether the folder is still the same.
GATHER, QUIET, LOOK = 200, 50, 500
MAX_WAIT = 10_000
REST = 1.0  # seconds before PostgreSQL, or a folder that is gone, is tried again


class Command(BaseCommand):
    """Watches until SIGTERM or SIGINT."""

    help = "Keep the front matter index of a folder up to date: submit frontmatter_index when files change."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The folder, what to look at in it, and how changes are gathered."""
        parser.add_argument("directory", metavar="DIR", help="a folder below one of the roots: /data/notes")
        parser.add_argument("--pattern", default="**/*.md", help="which files to index (**/*.md)")
        parser.add_argument(
            "--ignore-initial", action="store_true", help="do not begin with a run for the whole folder"
        )
        ways = parser.add_mutually_exclusive_group()
        ways.add_argument(
            "--debounce", type=int, metavar="MS", help="run once nothing has changed for so long (300)"
        )
        ways.add_argument(
            "--throttle", type=int, metavar="MS", help="run at once, and again at most every so often"
        )
        ways.add_argument(
            "--adaptive",
            action="store_true",
            help="debounce from 300 up to 5000 ms the more changes there are",
        )
        parser.add_argument(
            "--max-wait", type=int, metavar="MS", help="run at the latest so long after a change (10000)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Watch; a folder that is not below a root, or not there, is refused."""
        place = _place(options["directory"])
        try:
            check_glob(options["pattern"])
        except ValueError as error:
            raise CommandError(f"--pattern: {error}") from None
        watcher = Watcher(place, options["pattern"], _policy(options), self._say)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: watcher.stop())
        try:
            with holding(place):
                pass
            watcher.run(begin_with_all=not options["ignore_initial"])
        except FileNotFoundError:
            raise CommandError(f"{place} is not there") from None
        except (RefusedPath, InvalidSubmission) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            # Such as fs.inotify.max_user_watches; whoever started us starts us again.
            raise CommandError(f"{place} cannot be watched: {error}") from None

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


class Watcher:
    """Owes a run to a folder whenever something has changed in it, until one is submitted."""

    def __init__(self, place: Location, pattern: str, policy: Policy, say: Callable[[str], None]) -> None:
        self._place, self._policy, self._say = place, policy, say
        self._data = {"directory": str(place), "pattern": pattern}
        # One key for each tree, however it is named and from wherever it is watched.
        self._key = f"watch {hashlib.sha256(json.dumps(self._data).encode()).hexdigest()}"
        self._asked = threading.Event()
        self._owes, self._said = False, ""

    def stop(self) -> None:
        """End soon; returns at once."""
        self._asked.set()

    def run(self, *, begin_with_all: bool) -> None:
        """Watch until asked to stop, also through times in which the folder or PostgreSQL are gone."""
        self._owes = begin_with_all
        while not self._asked.is_set():
            is_there = False
            try:
                with holding(self._place) as folder:
                    self._watch(folder)
                    is_there = self._is_still(folder)
            except (FileNotFoundError, RefusedPath, WatchfilesRustInternalError) as error:
                self._tell(f"{self._place} cannot be watched, trying again: {error}")
            if not is_there and not self._asked.is_set():
                # For what was in it, and again once it is back and watched.
                self._owes = True
                self._pay()
                self._asked.wait(REST)
            self._owes = True

    def _watch(self, folder: int) -> None:
        """Until asked to stop, or until there is another folder to watch, here or below."""
        top, is_watched = Path(self._place.root.folder, *self._place.parts).absolute(), False
        # It yields for the first time when it has begun to watch, so that nothing falls between. By itself it
        # would follow links, and learn of new folders when there are files in them already.
        for changes in watch(
            *_folders(top),
            recursive=False,
            watch_filter=None,
            debounce=GATHER,
            step=QUIET,
            rust_timeout=LOOK,
            yield_on_timeout=True,
            stop_event=self._asked,
            raise_interrupt=False,
        ):
            if not is_watched:
                is_watched = True
                self._tell(f"watching {self._place}")
            visible = [path for _, changed in changes if _is_visible(path := Path(changed), top)]
            self._owes = self._owes or any(self._counts(path, top) for path in visible)
            self._pay()
            if any(_is_folder(path) for path in visible) or not self._is_still(folder):
                return

    def _is_still(self, folder: int) -> bool:
        try:
            with holding(self._place) as now:
                return os.path.samestat(os.fstat(now), os.fstat(folder))
        except (FileNotFoundError, RefusedPath):
            return False

    def _pay(self) -> None:
        """Submit a run if one is owed; it stays owed while PostgreSQL or the queue do not take it."""
        if not self._owes or self._asked.is_set():
            return
        try:
            task = submit(TYPE, self._data, unique=self._policy, unique_key=self._key)
        except (DatabaseError, InterfaceError, psycopg.Error, QueueFull) as error:
            self._tell(f"not accepted, trying again: {' '.join(str(error).split())}")
            if not isinstance(error, QueueFull):
                connection.close()
            self._asked.wait(REST)
        else:
            self._owes = False
            self._tell(f"submitted {task.id}")

    def _counts(self, path: Path, top: Path) -> bool:
        """Whether this change may matter: of what is gone, nobody knows whether it was a folder."""
        named = matches(self._data["pattern"], path.relative_to(top).parts)
        return named or _is_folder(path) or not os.path.lexists(path)

    def _tell(self, line: str) -> None:
        """Say it, unless it was said last."""
        if line != self._said:
            self._said = line
            self._say(line)


def _folders(top: Path) -> list[Path]:
    found = []
    for folder, below, _ in os.walk(top):
        found.append(Path(folder))
        is_deep = len(found[-1].relative_to(top).parts) >= DEEPEST_FOLDER
        below[:] = [] if is_deep else [name for name in below if not name.startswith(".")]
    return found


def _is_visible(path: Path, top: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(top).parts)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _place(directory: str) -> Location:
    """The folder that a person means: by the name that clients use, or by where it really is."""
    try:
        return locate(directory, *SOURCES, folder=True)
    except RefusedPath as refusal:
        allowed = [f"/{root.prefix} ({root.folder})" for root in SOURCES]
        for root in SOURCES:
            top = root.folder.absolute()
            if Path(directory).absolute().is_relative_to(top):
                return locate(
                    f"/{root.prefix}/{Path(directory).absolute().relative_to(top)}", root, folder=True
                )
        raise CommandError(f"DIR: {refusal}; allowed is what lies below {', '.join(allowed)}") from None


def _policy(options: dict[str, Any]) -> Policy:
    longest = options["max_wait"]
    try:
        if options["throttle"] is not None:
            if longest is not None:
                raise CommandError("--max-wait: a throttled run waits for nothing but --throttle")
            return Throttle(period=options["throttle"] / 1000, trailing=True)
        wait = 300 if options["debounce"] is None else options["debounce"]
        limit = (max(MAX_WAIT, wait) if longest is None else longest) / 1000
        if options["adaptive"]:
            return Debounce(wait=0.3, factor=1.5, after=5, longest=5, max_wait=limit)
        return Debounce(wait=wait / 1000, max_wait=limit)
    except ConfigurationError as error:
        way = "--throttle" if options["throttle"] is not None else "--debounce and --max-wait"
        raise CommandError(f"{way}: {error}") from None
