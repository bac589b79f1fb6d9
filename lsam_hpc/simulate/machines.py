"""Machines by name or from a file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from lsam_hpc.errors import InputError
from lsam_hpc.options.files import read_options
from lsam_hpc.simulate.describe import Machine

REQUIRED = ("ranks_per_node", "cores", "copy", "memory", "nic", "rank_rate", "latency")


def known() -> list[str]:
    """Return the names of the machines that come with the package."""
    return sorted(Path(file.name).stem for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load(name: str) -> Machine:
    """Return a machine by name or from a file.

    Args:
        name: name of a machine of the package, or path of a YAML or TOML file with the fields of `Machine`.

    Raises:
        InputError: there is no such machine, or its file is invalid.
    """
    if name in known():
        with resources.as_file(_folder() / f"{name}.yaml") as path:
            return read(path)
    path = Path(name)
    if not path.is_file():
        raise InputError(f"--machine: expected one of {', '.join(known())}, or a file, found {name}")
    return read(path)


def read(path: Path) -> Machine:
    """Return the machine that a file describes."""
    hints = get_type_hints(Machine)
    values: dict[str, Any] = read_options(path, hints)
    values.setdefault("name", path.stem)
    if missing := [field for field in REQUIRED if field not in values]:
        raise InputError(f"{path}: expected {', '.join(REQUIRED)}, found no {missing[0]}")
    return Machine(**values)


def _folder() -> Any:  # noqa: ANN401
    return resources.files("lsam_hpc.simulate") / "machines"
