"""HDF5 files that appear when they are complete, on disks that may fail."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from lsam_hpc.errors import InputError
from lsam_hpc.files import appearing


@contextmanager
def new_file(out: Path, **options: Any) -> Iterator[h5py.File]:  # noqa: ANN401
    """Make a file that takes its name when it is complete; after an error nothing is left.

    Args:
        out: must not exist.
        **options: of h5py.File.

    Raises:
        InputError: it exists, or cannot be made or written.
    """
    with appearing(out) as part, _Sink(part, "w+") as sink:
        try:
            with h5py.File(sink, "w", **options) as file:
                yield file
        except (OSError, RuntimeError) as error:
            sink.failed = sink.failed or error
        if sink.failed is not None:
            text = reason(sink.failed)
            raise InputError(f"{out}: expected a file that can be made, found: {text}") from sink.failed


class _Sink(io.FileIO):
    """A file that takes everything: the first error is kept, and what comes after it goes nowhere.

    HDF5 loses errors when it writes at the end of a dataset's life, and crashes when it cannot write at the end of its
    own (seen with 2.0).
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
    """Write no more to a file, after an error.

    HDF5 crashes the process when it cannot write what it still holds, at the latest at the exit (seen with 2.0). So all
    that it writes from now on goes nowhere, and nothing fails.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, file.id.get_vfd_handle(), inheritable=False)
    os.close(nowhere)


def reason(error: BaseException) -> str:
    """Return what the system said of an error of HDF5's, which says much else, or the error's first line."""
    said = re.search("error message = '([^']*)'", str(error))
    if said:
        return said[1]
    if isinstance(error, OSError) and error.strerror and "\n" not in error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
