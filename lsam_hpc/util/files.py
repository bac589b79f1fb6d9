"""Files and directories that get their name once they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lsam_hpc.errors import InputError


@contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """Return a context that renames the file or directory written in it to `out`; after an error it is removed.

    Args:
        out: the final path, which must not exist.

    Yields:
        The path to write to: `out` with ".part" appended.

    Raises:
        InputError: `out` exists, or a file operation failed.
    """
    part = out.with_name(out.name + ".part")
    try:
        if out.exists() or out.is_symlink():
            raise InputError(f"{out}: expected no such file, found one")
        if part.is_dir():
            raise InputError(f"{part}: expected no such directory, found one: remove what a killed program left")
        if not out.parent.is_dir():
            raise InputError(f"{out}: expected a file that can be made, found: no folder {out.parent}")
        try:
            yield part
            part.rename(out)
        finally:
            if part.is_dir():
                shutil.rmtree(part)
            elif part.exists():
                part.unlink()
    except OSError as error:
        raise InputError(f"{out}: expected a file that can be made, found: {error}") from error


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file atomically and durably: after a crash either the old or the new file is complete on disk.

    Args:
        path: the file, which may exist; its directory must exist.
        write: writes the contents to the binary file that it is given.

    Raises:
        OSError: a file operation failed; the file at `path` is unchanged, and what was written is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # it was not made, or the disk that failed
            temporary.unlink()
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from error  # torch.save hides the disk's error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
