"""Options of `lsam submit` for a centre, from jobs/sites (in the package by the link launch/sites) or a user's file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.launch.submit_options import HINTS
from lsam_hpc.options.files import read_table, typed


def known() -> list[str]:
    """Return the names of the sites that come with the package."""
    return sorted(Path(file.name).stem for file in _folder().iterdir() if file.name.endswith(".toml"))


def table() -> str:
    """Return a line for each site: its name, and the first line of its file."""
    lines = ((name, (_folder() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]) for name in known())
    return "\n".join(f"{name:12}  {line.removeprefix('# ')}" for name, line in lines)


def read(name: str) -> dict[str, Any]:
    """Return the options of a site by name with underscores.

    Args:
        name: of a site of the package, or path of a TOML or YAML file. A list of texts stands for several lines.

    Raises:
        InputError: there is no such site, an option is not known, or its value is of another type.
    """
    if name in known():
        with resources.as_file(_folder() / f"{name}.toml") as path:
            table = read_table(path, "--site")
    elif Path(name).suffix or Path(name).exists():
        table = read_table(Path(name), "--site")
    else:
        raise InputError(f"--site: expected list, one of {', '.join(known())}, or a TOML file, found {name!r}")
    return typed(name, {key: _lines(value) for key, value in table.items()}, HINTS)


def _lines(value: object) -> object:
    """Return a list of texts as lines, and other values as they are."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return value


def _folder() -> Any:  # noqa: ANN401 - its type moved in Python 3.11
    return resources.files("lsam_hpc.launch") / "sites"
