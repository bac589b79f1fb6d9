"""Files and directories that get their name once they are complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
