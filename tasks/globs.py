"""Globs: patterns for the places of files below a folder, such as ``**/*.md``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

ANY_FOLDERS = "**"


def check_glob(pattern: str) -> str:
    """The pattern. Raises ValueError for one that can match nothing below a folder."""
    if not all(pattern.split("/")) or any(part in (".", "..") for part in pattern.split("/")):
        raise ValueError("a pattern such as **/*.md has no empty parts, '.' or '..' between its slashes")
    return pattern


def matches(pattern: str, parts: Sequence[str]) -> bool:
    """Whether a file is meant, by the names that lead to it: ``**`` is any folders, ``*`` any part of one."""
    steps = pattern.split("/")
    # All places in the pattern that the names so far can have led to; no pattern takes longer than that.
    reached = _closed({0}, steps)
    for part in parts:
        there = {place for place in reached if place < len(steps)}
        stays = {place for place in there if steps[place] == ANY_FOLDERS}
        goes = {place + 1 for place in there - stays if fnmatchcase(part, steps[place])}
        reached = _closed(stays | goes, steps)
    return len(steps) in reached


def _closed(places: set[int], steps: list[str]) -> set[int]:
    found = set()
    for first in places:
        place = first
        found.add(place)
        while place < len(steps) and steps[place] == ANY_FOLDERS:
            place += 1
            found.add(place)
    return found
