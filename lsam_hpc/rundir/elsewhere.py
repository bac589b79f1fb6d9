"""Writes files in spite of disk errors: again after a pause, or in another place."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

RETRIES = (1.0, 3.0, 9.0)  # s before each retry
_LASTING = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}  # not worth a retry
_T = TypeVar("_T")


def persist(write: Callable[[], _T]) -> tuple[_T | None, str]:
    """Call a function that writes files until the disk accepts them.

    Args:
        write: raises OSError, or RuntimeError as torch does, if the disk fails.

    Returns:
        What it returned, and ""; or None and the last error's reason, after the retries.
    """
    for pause in (*RETRIES, None):
        try:
            return write(), ""
        except (OSError, RuntimeError) as error:
            reason = why(error)
            if pause is None or (isinstance(error, OSError) and error.errno in _LASTING):
                break
        time.sleep(pause)
    return None, reason


def why(error: OSError | RuntimeError) -> str:
    """Return an error's reason, on one line."""
    return (isinstance(error, OSError) and error.strerror) or (str(error) or type(error).__name__).splitlines()[0]


def places(run_dir: Path, when: str, env: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Yield the folders for what does not fit into a run directory, in order; none of them exists.

    Args:
        run_dir: the run directory.
        when: part of the folders' name, the same on every rank.
        env: environment variables.
    """
    name = f"{run_dir.absolute().name}-saved-{when}"
    for variable in ("SLURM_TMPDIR", "TMPDIR"):
        if folder := env.get(variable):
            yield Path(folder).absolute() / name
    yield Path.cwd() / name


def write_elsewhere(folders: Iterator[Path], write: Callable[[Path], _T]) -> tuple[_T | None, Path | None]:
    """Write files in the first folder whose disk accepts them; it is made.

    Args:
        folders: to try, in order.
        write: writes the files into the folder that it is given.

    Returns:
        What the function returned, and the folder; None and None if no disk accepted the files.
    """
    for folder in folders:
        try:
            folder.mkdir(exist_ok=True)  # not its parents: a variable may name a folder that does not exist
            return write(folder), folder
        except (OSError, RuntimeError):
            _remove_if_empty(folder)
    return None, None


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it was not made, or holds another rank's files
