"""Reads a state (a vector of parameters) by its name, from a run or from a file."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rundir.state_dict import read_state_dict
from lsam_hpc.trajectory import Run

SYNTAX = "center[@I], RANK[@I] or FILE.pt (I: index of the snapshot, -1 the last)"


def state(run: Run, name: str) -> NDArray[np.float32]:
    """Return a state of a run as a flat vector, shape (P,).

    Args:
        run: with snapshots, unless the name is that of a file, or `center` and the run has checkpoints/center.pt.
        name: `center` or `center@I`: the center in snapshot I of the lowest rank (default: the last one, or without
            snapshots that of checkpoints/center.pt); `3` or `3@I`: the sample of rank 3; or the name of a file with the
            model's state_dict.

    Raises:
        InputError: the name is not valid, or the run or file has no such state.
    """
    if match := re.fullmatch(r"(center|\d+)(?:@(-?\d+))?", name):
        kind = "center" if match[1] == "center" else "sample"
        rank = run.ranks[0] if kind == "center" else int(match[1])
        if f"snapshot/{kind}" not in run.log(rank).tables or not len(run.snapshots(rank, kind)["iteration"]):
            saved = (run.path if run.path.is_dir() else run.path.parent) / "checkpoints" / "center.pt"
            if name == "center" and saved.exists():
                return _from_file(run, saved)
            also, none = (", or checkpoints/center.pt", "neither") if name == "center" else ("", "none")
            raise InputError(
                f"{run.path}: expected snapshots of the {kind} of rank {rank}{also}, found {none}: "
                "train with --snapshot-every log, or name a file"
            )
        return run.snapshot(rank, int(match[2] or -1), kind)
    if Path(name).suffix in (".pt", ".pth"):
        return _from_file(run, Path(name))
    raise InputError(f"state: expected {SYNTAX}, found {name!r}")


def _from_file(run: Run, path: Path) -> NDArray[np.float32]:
    tensors = read_state_dict(path, [(name, shape) for name, shape, _ in run.layout])
    vector = np.empty(run.size, np.float32)
    for name, shape, at in run.layout:
        vector[at : at + math.prod(shape)] = tensors[name].reshape(-1).float().numpy()
    return vector
