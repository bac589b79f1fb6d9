"""Opens a log that was closed, is being written, or was left by a killed writer, without ever waiting for it."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from lsam_hpc.errors import InputError

# What h5py raises for a damaged file.
DAMAGE = (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, OverflowError, MemoryError)

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = 48  # bytes of a superblock of version 3, which marks a file that is being written
_FLAGS, _END, _CHECKSUM = 11, slice(28, 36), slice(44, 48)
_FAR = 2**62  # a length that no file reaches


@contextmanager
def opened(path: Path) -> Iterator[tuple[h5py.File, int]]:
    """Open a file for reading.

    HDF5's SWMR mode waits for ever for a part that is damaged or cut off. So a file that its writer has not closed is
    opened as a closed one: the flags of an open file and its outdated length are hidden from HDF5. What SWMR writing
    guarantees still holds: a part is on disk before the pointers to it.

    Yields:
        The file, and its size in bytes if it was not closed, else 0.

    Raises:
        InputError: there is no such file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path}: expected a file, found something else")
        stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, found: {error.strerror}") from error
    with stream:
        superblock = stream.read(_SUPERBLOCK)
        if not _unclosed(superblock):
            with h5py.File(path, "r", locking=False) as file:
                yield file, 0
            return
        size = os.fstat(stream.fileno()).st_size
        with h5py.File(_Unclosed(stream, superblock), "r") as file:
            yield file, size


def is_closed(path: Path) -> bool:
    """Return whether a log's writer has closed it: it was not killed, and does not write any more."""
    with path.open("rb") as stream:
        return not _unclosed(stream.read(_SUPERBLOCK))


def _unclosed(superblock: bytes) -> bool:
    return (
        len(superblock) == _SUPERBLOCK
        and superblock.startswith(_SIGNATURE)
        and superblock[8] == 3
        and superblock[_FLAGS] != 0
        and _lookup3(superblock[: _CHECKSUM.start]).to_bytes(4, "little") == superblock[_CHECKSUM]
    )


class _Unclosed(io.RawIOBase):
    """Shows an unclosed file as a closed one, with zeros after its end."""

    def __init__(self, stream: io.FileIO, superblock: bytes) -> None:
        self._stream = stream
        closed = bytearray(superblock)
        closed[_FLAGS] = 0
        closed[_END] = _FAR.to_bytes(8, "little")  # the file may grow while it is read
        closed[_CHECKSUM] = _lookup3(bytes(closed[: _CHECKSUM.start])).to_bytes(4, "little")
        self._superblock = bytes(closed)
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: _FAR}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (count := os.preadv(self._stream.fileno(), [view[filled:]], self._at + filled)):
            filled += count
        view[filled:] = bytes(len(view) - filled)
        if self._at < _SUPERBLOCK:
            part = self._superblock[self._at : self._at + len(view)]
            view[: len(part)] = part
        self._at += len(view)
        return len(view)


def _lookup3(data: bytes) -> int:
    """Return the check sum of HDF5's metadata. Source: Bob Jenkins 2006, lookup3.c, hashlittle, with initval 0."""

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (32 - bits)) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    words += [0] * (-len(words) % 3)
    for i in range(0, len(words) - 3, 3):
        a, b, c = (x + y & 0xFFFFFFFF for x, y in zip((a, b, c), words[i : i + 3], strict=True))
        for bits in (4, 6, 8, 16, 19, 4):
            a = (a - c & 0xFFFFFFFF) ^ rotate(c, bits)
            a, b, c = b, c + b & 0xFFFFFFFF, a
    a, b, c = (x + y & 0xFFFFFFFF for x, y in zip((a, b, c), words[-3:], strict=True))
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - rotate(b, bits) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b
