"""Makes HDF5 files that get their name when they are complete, and survives disks that fail."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.openfile import DAMAGE
from lsam_hpc.util.files import atomic_path


@contextmanager
def new_file(out: Path, **options: Any) -> Iterator[h5py.File]:  # noqa: ANN401
    """Make a file under a temporary name and rename it when it is complete; after an error it is removed.

    Args:
        out: path of the file; it must not exist.
        **options: of h5py.File.

    Raises:
        InputError: the file exists, or cannot be made or written.
    """
    with atomic_path(out) as part, _Sink(part, "w+") as sink:
        try:
            with h5py.File(sink, "w", **options) as file:
                yield file
        except (OSError, RuntimeError) as error:
            sink.failed = sink.failed or error
        if sink.failed is not None:
            text = reason(sink.failed)
            raise InputError(f"{out}: expected a file that can be made, found: {text}") from sink.failed


class _Sink(io.FileIO):
    """A file whose writes never fail: it keeps the first error and discards all later writes.

    HDF5 loses an error of a write while it closes a dataset, and crashes on one while it shuts down (seen with 2.0).
    """

    failed: Exception | None = None

    def write(self, data: Any) -> int:  # noqa: ANN401
        view = memoryview(data).cast("B")
        start = self.tell()
        try:
            while len(view) and self.failed is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.failed = error
        self.seek(start + memoryview(data).nbytes)
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            if self.failed is None:
                return super().truncate(size)
        except OSError as error:
            self.failed = error
        return size or 0


def abandon(file: h5py.File) -> None:
    """Close a file after an error and discard what is not written yet: it stays like the file of a killed writer.

    HDF5 crashes the process when it cannot write its buffers, at the latest at the exit (seen with 2.0). So the file's
    descriptor is redirected to /dev/null, where no write fails. Reads do: closing fails if it needs a part of the file.
    """
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, file.id.get_vfd_handle(), inheritable=False)
    os.close(null)
    with suppress(*DAMAGE):
        file.close()


def reason(error: BaseException) -> str:
    """Return the operating system's message from an error of HDF5, or else the error's first line."""
    message = re.search("error message = '([^']*)'", str(error))
    if message:
        return message[1]
    if isinstance(error, OSError) and error.strerror and "\n" not in error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
