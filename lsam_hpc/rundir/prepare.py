"""Makes the run directory; called after all other checks, since it may delete an old run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.util.files import replace_file


def prepare(
    run_dir: Path, options: Mapping[str, Any], rank: int, *, overwrite: bool = False, resumed: bool = False
) -> Path:
    """Return the run directory; rank 0 makes it and writes config.json.

    Args:
        run_dir: the run directory.
        options: the run's options, for config.json.
        rank: this process's rank.
        overwrite: replace an existing run. Default False.
        resumed: continue the existing run. Default False.

    Raises:
        InputError: it holds a run that may not be replaced, or cannot be written.
    """
    if rank > 0:
        return run_dir
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise InputError(f"--out: expected a directory, found a file: {run_dir}")
        old = _files_of_a_run(run_dir) if run_dir.is_dir() and not resumed else []
        if old and not overwrite:
            raise InputError(
                f"--out: expected a directory without a run, found one in {run_dir}: "
                "name another, or replace it with --overwrite"
            )
        for file in old:
            file.unlink()
        run_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(options), indent=2) + "\n"
        replace_file(run_dir / "config.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise InputError(
            f"--out: expected a directory that can be written, found {run_dir}: {error.strerror}"
        ) from error
    return run_dir


def _files_of_a_run(run_dir: Path) -> list[Path]:
    """Return the files that a run wrote, without other files in the same folders."""
    pattern = r"config\.json|run\.h5|rank-\d{4,}(-shard-\d{4,})?\.h5"
    logs = [file for file in run_dir.iterdir() if re.fullmatch(pattern, file.name)]
    pattern = r"center\.pt|set-\d{12}\.json|rank-\d{4,}-\d{12}\.pt|.*\.tmp"
    checkpoints = run_dir / "checkpoints"
    saved = [file for file in checkpoints.iterdir() if re.fullmatch(pattern, file.name)] if checkpoints.is_dir() else []
    profile = run_dir / "profile"
    pattern = r"(part-)?rank-\d{4,}\.json\.gz"
    traces = [file for file in profile.iterdir() if re.fullmatch(pattern, file.name)] if profile.is_dir() else []
    return [*logs, *saved, *traces]
