"""Roots: the only folders whose files a client may name, and how such a file is opened.

A name that looks absolute, ``/uploads/a.jpg``, means ``a.jpg`` under UPLOAD_ROOT. Every component is
opened by descriptor and without following links, so that a link swapped in between changes nothing.
Hard links are ordinary files here: the kernel cannot tell which name came first. Writing replaces
names, never contents, so that a file's other names keep what they had.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from django.conf import settings
from pydantic import AfterValidator

from capataz.errors import Discard

LONGEST_PATH = 1024
DEEPEST_FOLDER = 100
FILE_MODE, FOLDER_MODE = 0o640, 0o750
CHUNK = 1024 * 1024
OWNER = "user.capataz.task"  # the extended attribute with the id of the task that wrote a file

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO waits for a writer that may never come.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_REASONS = {
    errno.ELOOP: "it is a symbolic link",
    errno.ENOTDIR: "a part of it is a symbolic link or not a folder",
    errno.ENXIO: "it is not a regular file",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "a part of it is longer than 255 bytes",
}


class RefusedPath(Discard, ValueError):
    """A path that no handler may open, however often it is tried; the message names it and says why."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{str(path)!r} is refused: {reason}")


@dataclass(frozen=True)
class Root:
    """A folder of the installation, by the first component that clients call it by."""

    prefix: str
    setting: str

    @property
    def folder(self) -> Path:
        """Where the files really are."""
        return Path(getattr(settings, self.setting))


UPLOADS = Root("uploads", "UPLOAD_ROOT")
PROCESSED = Root("processed", "PROCESSED_ROOT")
DATA = Root("data", "DATA_ROOT")
EXPORTS = Root("exports", "EXPORT_ROOT")


@dataclass(frozen=True)
class Location:
    """A place under a root; as text, the name that clients know it by."""

    root: Root
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return "/" + "/".join((self.root.prefix, *self.parts))

    @property
    def name(self) -> str:
        """The last component; empty for the root itself."""
        return self.parts[-1] if self.parts else ""

    @property
    def suffix(self) -> str:
        """The suffix in lower case, with its dot, or an empty string."""
        return PurePosixPath(self.name).suffix.lower()


def locate(path: str, *allowed: Root, folder: bool = False) -> Location:
    """The place that a client's path means; a relative path is under the first allowed root.

    Looks at the text only, so that it can also judge a submission. With ``folder``, the root itself
    and a closing slash are accepted.

    Raises RefusedPath for a path outside of the allowed roots, or with ``..`` or control characters.
    """
    _check_text(path)
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise RefusedPath(path, "it contains '..'")
    root, parts = _root_of(path, parts, allowed)
    if not folder and (not parts or path.endswith(("/", "/."))):
        raise RefusedPath(path, "it names a folder, not a file")
    return Location(root, parts)


def path_under(*allowed: Root, folder: bool = False) -> AfterValidator:
    """A pydantic validator that refuses at submission what ``locate`` would refuse later."""

    def check(path: str) -> str:
        locate(path, *allowed, folder=folder)
        return path

    return AfterValidator(check)


@contextmanager
def reading(location: Location, *, limit: int) -> Iterator[BinaryIO]:
    """The regular file at this place, opened for reading; ``limit`` is its largest size in bytes.

    Raises FileNotFoundError if it is not there (yet), RefusedPath if it is anything but a regular file
    below the root.
    """
    folder = _enter(location, location.parts[:-1])
    try:
        file = _open_regular(location, folder)
    finally:
        os.close(folder)
    with file:
        if size_of(file) > limit:
            raise RefusedPath(location, f"it is larger than {limit:,} bytes")
        yield file


def contents(location: Location, *, limit: int) -> bytes:
    """All bytes of the file at this place, at most ``limit``. Raises as ``reading`` does."""
    with reading(location, limit=limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise RefusedPath(location, f"it grew beyond {limit:,} bytes while it was read")
    return data


def size_of(file: BinaryIO) -> int:
    """The size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


@contextmanager
def writing(location: Location, *, overwrite: bool = False, owner: object = "") -> Iterator[BinaryIO]:
    """A new file that appears at this place, complete and on disk, when the block ends without error.

    Missing folders are made. A file that is already there is replaced only with ``overwrite``; without
    it, one with the very same bytes is accepted, because it is what an earlier attempt left, and one that
    the same ``owner`` has written is replaced, where the file system keeps extended attributes.

    Raises RefusedPath if another file is in the way, or something that is not a file.
    """
    folder = _enter(location, location.parts[:-1], create=True)
    temporary = f".capataz-{secrets.token_hex(8)}.tmp"
    try:
        with os.fdopen(os.open(temporary, _CREATE, FILE_MODE, dir_fd=folder), "w+b") as file:
            os.fchmod(file.fileno(), FILE_MODE)  # whatever the umask says
            if owner:
                with suppress(OSError):
                    os.setxattr(file.fileno(), OWNER, str(owner).encode())
            yield file
            file.flush()
            os.fsync(file.fileno())
            _publish(file, temporary, location, folder, overwrite or _is_of(owner, location, folder))
        os.fsync(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        os.close(folder)


def listing(location: Location, pattern: str, *, recursive: bool) -> Iterator[Location]:
    """The places below a folder whose names match a shell pattern, in order; hidden ones are left out.

    What is found may still be a link or a FIFO; ``reading`` refuses those one by one.
    """
    top = _enter(location, location.parts)
    try:
        for folder, folders, names, _ in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
            below = PurePosixPath(folder).parts
            for name in sorted(names):
                if fnmatchcase(name, pattern) and not name.startswith("."):
                    yield Location(location.root, (*location.parts, *below, name))
    finally:
        os.close(top)


def surveying(
    location: Location, *, on_error: Callable[[Location, OSError], None]
) -> Iterator[tuple[Location, os.stat_result]]:
    """What lies below a folder and is no folder, with what the kernel says of it; hidden names are left out.

    Links are told of, not followed. A folder that cannot be read is told to ``on_error``, and so is one that
    lies too deep; one that vanishes meanwhile is as if it had not been there.

    Raises FileNotFoundError if the folder itself is not there, RefusedPath if it is none.
    """
    os.close(_enter(location, location.parts))
    waiting = [location]
    while waiting:
        folder = waiting.pop()
        try:
            found = _entries(folder)
        except FileNotFoundError:
            continue
        except (OSError, RefusedPath) as error:
            reason = error if isinstance(error, OSError) else OSError(str(error))
            on_error(folder, reason)
            continue
        for name, status in found:
            place = Location(folder.root, (*folder.parts, name))
            if not stat.S_ISDIR(status.st_mode):
                yield place, status
            elif len(place.parts) > DEEPEST_FOLDER:
                on_error(place, OSError(f"it lies more than {DEEPEST_FOLDER} folders deep"))
            else:
                waiting.append(place)


def _entries(folder: Location) -> list[tuple[str, os.stat_result]]:
    found = []
    descriptor = _enter(folder, folder.parts)
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208 - a Path has no descriptor
            if not name.startswith("."):
                with suppress(FileNotFoundError):
                    found.append((name, os.stat(name, dir_fd=descriptor, follow_symlinks=False)))
    finally:
        os.close(descriptor)
    return found


@contextmanager
def holding(location: Location) -> Iterator[int]:
    """A descriptor of the folder at this place; while it is open, no other folder gets its inode.

    Raises FileNotFoundError if it is not there, RefusedPath if it is no folder or behind a link.
    """
    descriptor = _enter(location, location.parts)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_text(path: str) -> None:
    if not path or len(path) > LONGEST_PATH:
        raise RefusedPath(path[:80], f"a path has 1 to {LONGEST_PATH} characters")
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise RefusedPath(path, "it contains a control character")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in path):
        raise RefusedPath(path, "it is not valid Unicode")


def _root_of(path: str, parts: tuple[str, ...], allowed: tuple[Root, ...]) -> tuple[Root, tuple[str, ...]]:
    if not path.startswith("/"):
        return allowed[0], parts
    for root in allowed:
        if parts[:1] == (root.prefix,):
            return root, parts[1:]
    raise RefusedPath(path, "it is not under " + " or ".join(f"/{root.prefix}" for root in allowed))


@contextmanager
def _explained(location: Location) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        # The kernel's own message would name one component only, not the path that the client sent.
        raise FileNotFoundError(errno.ENOENT, "No such file", str(location)) from None
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise RefusedPath(location, _REASONS[error.errno]) from None


def _enter(location: Location, folders: tuple[str, ...], *, create: bool = False) -> int:
    """A descriptor of the folder reached by these names; the caller closes it."""
    with _explained(location):
        if create:
            location.root.folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        descriptor = os.open(location.root.folder, _FOLDER)
        for name in folders:
            try:
                deeper = _open_folder(name, descriptor, create)
            finally:
                os.close(descriptor)
            descriptor = deeper
        return descriptor


def _open_folder(name: str, parent: int, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, FOLDER_MODE, dir_fd=parent)
            os.fsync(parent)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def _open_regular(location: Location, folder: int) -> BinaryIO:
    with _explained(location):
        descriptor = os.open(location.name, _READ, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedPath(location, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _publish(file: BinaryIO, temporary: str, location: Location, folder: int, overwrite: bool) -> None:
    with _explained(location):
        if overwrite:
            _check_replaceable(location, folder)
            os.rename(temporary, location.name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        try:
            # A link, unlike a rename, fails if the name is taken, so that of two writers one is told.
            os.link(temporary, location.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            _check_same(file, location, folder)


def _is_of(owner: object, location: Location, folder: int) -> bool:
    if not owner:
        return False
    try:
        with _open_regular(location, folder) as there:
            return os.getxattr(there.fileno(), OWNER) == str(owner).encode()
    except OSError:  # nothing is there, or nothing is known of it
        return False


def _check_replaceable(location: Location, folder: int) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(location.name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise RefusedPath(location, "what is there is not a regular file")


def _check_same(file: BinaryIO, location: Location, folder: int) -> None:
    with _open_regular(location, folder) as there:
        file.seek(0)
        while True:
            ours, theirs = file.read(CHUNK), there.read(CHUNK)
            if ours != theirs:
                raise RefusedPath(location, "another file is there; submit with overwrite to replace it")
            if not ours:
                return
