"""Manifests: a set of checkpoint files counts only with one, which names its files."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.util.files import replace_file

FORMAT, VERSION = "lsam-hpc checkpoint", 1
FILE = re.compile(r"rank-(\d{4,})-(\d{12})\.pt")
SET = re.compile(r"set-(\d{12})\.json")


@dataclass(frozen=True)
class Manifest:
    """The files of a set: one per rank, None for a rank that had failed."""

    step: int  # global step at which the set was due
    layout: list[tuple[str, tuple[int, ...]]]
    config: dict[str, Any]
    files: list[str | None]
    bytes: list[int]
    finished: bool = False  # the job's budget was spent

    @property
    def ranks(self) -> int:
        """Number of ranks of the job."""
        return len(self.files)

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder.

        Raises:
            OSError: the disk failed.
        """
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps(content, indent=1).encode() + b"\n"
        replace_file(folder / f"set-{self.step:012}.json", lambda file: file.write(text))


def manifests(folder: Path) -> list[Path]:
    """Return the manifests in a folder, the newest last."""
    return sorted(file for file in folder.iterdir() if SET.fullmatch(file.name)) if folder.is_dir() else []


def newest(folder: Path) -> Manifest | None:
    """Return the newest complete set in a folder, None if there is none.

    Raises:
        InputError: its manifest is damaged, or a file is missing or truncated.
    """
    sets = manifests(folder)
    if not sets:
        return None
    manifest = parsed(sets[-1])
    for name, size in zip(manifest.files, manifest.bytes, strict=True):
        if name is None:
            continue
        path = folder / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            raise InputError(
                f"{path}: expected {size} bytes, found {'no such file' if actual is None else actual}: "
                f"remove {sets[-1].name} to resume from the set before it"
            )
    return manifest


def parsed(path: Path) -> Manifest:
    """Return a manifest.

    Raises:
        InputError: it is damaged.
    """
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT or content.pop("version") != VERSION:
            raise InputError(f"{path}: expected format {FORMAT!r} of version {VERSION}, found another")
        content["layout"] = [(str(name), tuple(map(int, shape))) for name, shape in content["layout"]]
        manifest = Manifest(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a checkpoint's manifest, found: {error}") from error
    if any(name is not None and not FILE.fullmatch(name) for name in manifest.files):
        raise InputError(f"{path}: expected names of files beside it, found others")
    return manifest


def file_name(rank: int, step: int) -> str:
    """Return the name of a rank's file of a set."""
    return f"rank-{rank:04}-{step:012}.pt"
