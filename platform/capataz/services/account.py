"""Whom PostgreSQL runs as: it refuses to be root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from capataz.services.errors import StartFailed

PREFERRED = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An unprivileged user of this machine."""

    name: str
    uid: int
    gid: int

    @property
    def identity(self) -> tuple[int, int]:
        """Its uid and gid."""
        return self.uid, self.gid

    def can_reach(self, path: Path) -> bool:
        """Whether this user may walk to ``path``, and into or run what is there.

        By the permission bits alone; an access list that says otherwise is not looked at.
        """
        real = path.resolve()
        return all(self._may_search(step) for step in (real, *real.parents))

    def _may_search(self, path: Path) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid == self.gid else 0
        return bool(found.st_mode >> shift & 1)


def unprivileged_account(cluster: Path) -> Account | None:
    """Whom to become for the data directory ``cluster``; None if we are an ordinary user and stay it.

    A cluster that exists keeps its owner, whatever users the machine has got since.
    """
    if os.geteuid() != 0:
        return None
    owner = _owner(cluster)
    if owner is not None:
        return owner
    for name in PREFERRED:
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            continue
    for entry in pwd.getpwall():
        if entry.pw_uid:
            return _account(entry)
    raise StartFailed(
        "PostgreSQL refuses to run as root and this machine has no other user. "
        "Add one, or name a running server in DATABASE_URL."
    )


def _owner(cluster: Path) -> Account | None:
    try:
        found = (cluster / "PG_VERSION").stat()
    except OSError:
        return None
    return Account(f"uid {found.st_uid}", found.st_uid, found.st_gid) if found.st_uid else None


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
