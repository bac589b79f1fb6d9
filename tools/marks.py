"""States that figures of tracks mark unless the user names others: the models in RUN/checkpoints."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.packages import require
from lsam_hpc.tools.source import home
from lsam_hpc.trajectory import Run


def checkpoint_marks(run: Run) -> dict[str, NDArray[np.floating[Any]]]:
    """Return the models in RUN/checkpoints as states, by the names that figures have for them; without torch none."""
    try:
        require("torch")
    except InputError:  # the figure is made without them
        return {}
    from lsam_hpc.landscape.states import state

    marks: dict[str, NDArray[np.floating[Any]]] = {}
    for path in sorted((home(run.path) / "checkpoints").glob("*.pt")):
        if path.name.startswith("rank-"):  # a rank's resume file: its samples are drawn already
            continue
        try:
            marks[f"checkpoint {path.stem}"] = state(run, str(path))
        except InputError as error:  # not fatal: the user did not name this file
            print(f"{error}: it is not drawn", file=sys.stderr)
    return marks
