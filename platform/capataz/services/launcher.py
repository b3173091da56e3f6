"""Become another program that dies with its parent: drop privileges, ask for a death signal, exec.

Run as a script in a fresh interpreter, because forking a process that has threads and then running
Python in the child (``preexec_fn``) can deadlock. Needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)


def wrapped(argv: Sequence[str], death_signal: int, user: tuple[int, int] | None) -> list[str]:
    """The command line that turns into ``argv``, bound to the life of the calling thread.

    ``user`` is the uid and gid to become. When the thread that starts it ends, however it ends, the program
    gets ``death_signal``: so start it from the main thread.
    """
    identity = "-" if user is None else f"{user[0]}:{user[1]}"
    # -I and -S: neither the environment, the current directory nor site-packages decides what runs here.
    script = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    return [*script, str(os.getpid()), str(death_signal), identity, *argv]


def _drop_privileges(identity: str) -> None:
    if identity == "-":
        return
    uid, gid = (int(number) for number in identity.split(":"))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _die_with(parent: int, death_signal: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def _forget_inherited_signals() -> None:
    # A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP; exec would keep that.
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGPIPE,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def main() -> None:
    """Become the program that the arguments name, or say why not."""
    parent, death_signal, identity, *argv = sys.argv[1:]
    _forget_inherited_signals()
    # The kernel clears the death signal when the user changes, so the user comes first.
    _drop_privileges(identity)
    _die_with(int(parent), int(death_signal))
    try:
        os.execvp(argv[0], argv)  # noqa: S606  # a shell is what we do not want
    except OSError as error:
        sys.exit(f"cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
