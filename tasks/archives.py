"""Archives: files packed and unpacked in pieces, within limits on what they may unfold to."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from capataz.errors import Discard
from tasks.roots import CHUNK, size_of

MOST_ENTRIES = 10_000
LARGEST_DIRECTORY = 4 * 1024 * 1024  # bytes of a zip's list of entries, which is read whole
HIGHEST_RATIO = 100
# What is smaller than this unpacked hurts nobody, whatever it was packed to.
HARMLESS = 1024 * 1024
XZ_MEMORY = 64 * 1024 * 1024
PIECE = 64 * 1024

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError, NotImplementedError,
          RuntimeError)  # fmt: skip


def packer(kind: str, file: BinaryIO, level: int) -> Any:
    """A file object that packs what is written to it. It names no time, so that the same makes the same."""
    if kind == "gzip":
        return gzip.GzipFile("", "wb", compresslevel=level, fileobj=file, mtime=0)
    return (
        bz2.BZ2File(file, "wb", compresslevel=level)
        if kind == "bz2"
        else lzma.LZMAFile(file, "wb", preset=level)
    )


def pack_zip(
    file: BinaryIO, entries: Iterator[tuple[str, BinaryIO]], level: int, look: Callable[[], None]
) -> int:
    """Write a zip of these entries; returns how many bytes went in."""
    total = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, source in entries:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as packed:
                while piece := source.read(CHUNK):
                    total += packed.write(piece)
                    look()
    return total


def unpacked(kind: str, file: BinaryIO, *, largest: int) -> Iterator[bytes]:
    """What a gzip, bz2 or xz file holds, in pieces. Raises Discard for a bomb or damage."""
    bound, total = Bound(largest, file.tell), 0
    decoder, finished = _decoder(kind), True
    try:
        while raw := file.read(PIECE):
            while raw:
                if finished:
                    decoder, finished = _decoder(kind), False
                piece = decoder(raw)
                while piece or not decoder.needs_input:
                    total += len(piece)
                    bound.check(total)
                    yield piece
                    if decoder.ended:
                        break
                    piece = decoder(b"")
                finished = decoder.ended
                raw = decoder.rest if finished else b""
                # Padding after the end is allowed by all three.
                raw = raw if raw.strip(b"\0") else b""
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
            raise
        raise Discard(f"the file is not valid {kind}: {str(error)[:200]}") from None
    if not finished or file.tell() == 0:
        raise Discard(f"the file is not valid {kind}: it ends too early")


class Bound:
    """Holds what comes out of an archive to a size and to a ratio."""

    def __init__(self, largest: int, packed: Callable[[], int]) -> None:
        self._largest, self._packed = largest, packed

    def check(self, total: int) -> None:
        """Raises Discard if this many bytes are too many."""
        if total > self._largest:
            raise Discard(f"it unpacks to more than {self._largest:,} bytes")
        if total > HARMLESS and total > HIGHEST_RATIO * max(1, self._packed()):
            raise Discard(f"it unpacks to more than {HIGHEST_RATIO} times its size")


def checked_zip(file: BinaryIO, *, largest: int) -> zipfile.ZipFile:
    """The zip file, if its entries are few enough, do not share bytes, and unpack within the bounds.

    An entry never yields more than it declares, so that what is declared may be trusted. Raises Discard.
    """
    try:
        count, directory = _end_of(file)
        if count > MOST_ENTRIES or directory > LARGEST_DIRECTORY:
            raise Discard(f"the archive has more than {MOST_ENTRIES:,} entries")
        archive = zipfile.ZipFile(file)
    except DAMAGE as error:
        raise Discard(f"the file is not a valid zip: {str(error)[:200]}") from None
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise Discard(f"the archive has more than {MOST_ENTRIES:,} entries")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.flag_bits & 1:
            raise Discard("the archive is encrypted")
        if entry.header_offset < end:
            raise Discard("entries of the archive overlap")
        end = entry.header_offset + 30 + entry.compress_size
        Bound(largest, lambda entry=entry: entry.compress_size).check(entry.file_size)  # type: ignore[misc]
    Bound(largest, lambda: size_of(file)).check(sum(entry.file_size for entry in entries))
    return archive


def _end_of(file: BinaryIO) -> tuple[int, int]:
    """How many entries a zip says that it has, and the bytes of their list."""
    size = file.seek(0, 2)
    start = max(0, size - 65_557)  # the record and the longest comment after it
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise ValueError("it has no list of entries")
    count, directory = struct.unpack("<HL", tail[at + 10 : at + 16])
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
        file.seek(max(0, struct.unpack("<Q", tail[at - 12 : at - 4])[0]))
        record = file.read(56)
        if record[:4] != b"PK\6\6" or len(record) < 56:
            raise ValueError("its list of entries is damaged")
        count, directory = struct.unpack("<QQ", record[32:48])
    file.seek(0)
    return count, directory


class _Decoder:
    """zlib's, bz2's and lzma's decompressors, made alike: pieces of bounded size, and what is left over."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __call__(self, raw: bytes) -> bytes:
        return self._made.decompress(raw, PIECE)  # type: ignore[no-any-return]

    @property
    def needs_input(self) -> bool:
        return bool(self._made.needs_input)

    @property
    def ended(self) -> bool:
        return bool(self._made.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._made.unused_data)


class _Gzip(_Decoder):
    def __init__(self) -> None:
        super().__init__(zlib.decompressobj(wbits=31))

    def __call__(self, raw: bytes) -> bytes:
        return self._made.decompress(self._made.unconsumed_tail + raw, PIECE)  # type: ignore[no-any-return]

    @property
    def needs_input(self) -> bool:
        return not self._made.unconsumed_tail


def _decoder(kind: str) -> _Decoder:
    if kind == "gzip":
        return _Gzip()
    return _Decoder(bz2.BZ2Decompressor() if kind == "bz2" else lzma.LZMADecompressor(memlimit=XZ_MEMORY))
