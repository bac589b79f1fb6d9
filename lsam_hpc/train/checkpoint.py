"""Checkpoints: every rank writes its own file while the chains go on, and a manifest makes a set of them count.

A set is named by the total step at which it falls due. Ranks write when they come by, so a set is no moment of the
whole job; each file is whole by itself, and says which version of the center it saw.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsam_hpc.errors import InputError
from lsam_hpc.train.selection import OPTIONS

FORMAT, VERSION = "lsam-hpc checkpoint", 1
_FILE = re.compile(r"rank-(\d{4,})-(\d{12})\.pt")
_SET = re.compile(r"set-(\d{12})\.json")
LOOK = 0.2  # s between two looks for the other ranks' files

State = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What makes a set: a file for each rank, None for one that was lost."""

    step: int  # total step at which the set fell due
    layout: list[tuple[str, tuple[int, ...]]]
    config: dict[str, Any]
    files: list[str | None]
    bytes: list[int]
    finished: bool = False  # the job's budget was spent

    @property
    def ranks(self) -> int:
        """Number of ranks that the job had."""
        return len(self.files)


class Checkpoints:
    """Writes this rank's files, and on the lowest living rank the manifests; keeps the newest sets.

    Args:
        folder: for the files; made if it is not there.
        rank: of this process.
        ranks: number of them.
        layout: (name, shape) of each parameter.
        config: the job's options, for the manifest.
        keep: number of sets that stay.
        flush: called before each file is written, in a thread: what a checkpoint holds must be in the log too.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        ranks: int,
        layout: Sequence[tuple[str, tuple[int, ...]]],
        config: dict[str, Any],
        keep: int,
        flush: Callable[[], object],
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.seconds = 0.0  # that the last file took to write
        self._folder, self._rank, self._ranks, self._keep = folder, rank, ranks, keep
        self._layout, self._config, self._flush = list(layout), config, flush
        self._thread: threading.Thread | None = None
        self._pending: list[int] = []  # sets of which this rank has a file, and which have no manifest yet
        self._looked = 0.0
        self._failed = False

    def write(self, step: int, state: State) -> None:
        """Copy a state and write it, in a thread; waits for the one before.

        Args:
            step: of the set.
            state: of this rank: tensors, numbers, texts, lists and dicts of them.
        """
        self.wait()
        copied = _copied(state)
        self._thread = threading.Thread(target=self._write, args=(step, copied), name="lsam-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until what was given to `write` is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def tend(self, lost: Sequence[int] = (), at_once: bool = False, finished: bool = False) -> None:
        """On the lowest living rank: write the manifests of sets that are complete, and remove old sets.

        Args:
            lost: ranks that will write no more.
            at_once: look, even if the last look was just now.
            finished: the job's budget is spent.
        """
        alive = [rank for rank in range(self._ranks) if rank not in lost]
        if not self._pending or self._rank != min(alive, default=self._rank):
            return
        if not at_once and time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        there: dict[int, list[int]] = {}
        for file in self._folder.iterdir():
            if match := _FILE.fullmatch(file.name):
                there.setdefault(int(match[1]), []).append(int(match[2]))
        for step in list(self._pending):
            # A rank that came by late has skipped sets: its next file stands for them.
            chosen = [min((s for s in there.get(rank, []) if s >= step), default=None) for rank in range(self._ranks)]
            if any(chosen[rank] is None for rank in alive):
                continue
            self._pending.remove(step)
            names = [None if s is None else _name(rank, s) for rank, s in enumerate(chosen)]
            sizes = [0 if name is None else (self._folder / name).stat().st_size for name in names]
            manifest = Manifest(step, self._layout, self._config, names, sizes, finished)
            self._manifest(manifest)
        self._remove_old()

    def _write(self, step: int, state: State) -> None:
        self._flush()
        clock = time.perf_counter()
        path = self._folder / _name(self._rank, step)
        try:
            _replace(path, lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:  # torch turns some of the disk's errors into RuntimeError
            if not self._failed:
                self._failed = True
                warnings.warn(f"{path}: no checkpoint, and training goes on: {error}", stacklevel=2)
            return
        self.seconds = time.perf_counter() - clock
        self._pending.append(step)

    def _manifest(self, manifest: Manifest) -> None:
        found = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
        text = json.dumps(found, indent=1).encode() + b"\n"
        _replace(self._folder / f"set-{manifest.step:012}.json", lambda file: file.write(text))

    def _remove_old(self) -> None:
        """Remove all sets but the newest ones, and the files that belong to none of these."""
        sets = sorted(file for file in self._folder.iterdir() if _SET.fullmatch(file.name))
        old, kept = sets[: -self._keep], sets[-self._keep :]
        if not old:
            return
        needed = {name for file in kept for name in _parsed(file).files}
        first = int(_SET.fullmatch(kept[0].name)[1])  # type: ignore[index]
        for file in old:
            file.unlink()
        for file in self._folder.iterdir():
            match = _FILE.fullmatch(file.name)
            if match and file.name not in needed and int(match[2]) < first:
                file.unlink()


def newest(folder: Path) -> Manifest | None:
    """Return the newest complete set in a folder, None if there is none.

    Raises:
        InputError: its manifest is not as it should be, or a file is missing or cut.
    """
    sets = sorted(file for file in folder.iterdir() if _SET.fullmatch(file.name)) if folder.is_dir() else []
    if not sets:
        return None
    manifest = _parsed(sets[-1])
    for name, size in zip(manifest.files, manifest.bytes, strict=True):
        if name is None:
            continue
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise InputError(f"{path}: expected {size} bytes, found {'none' if found is None else found}: "
                             f"remove {sets[-1].name} to go on from the set before it")  # fmt: skip
    return manifest


def load(folder: Path, manifest: Manifest, rank: int) -> State | None:
    """Return a rank's state, None if the set has none of it.

    Raises:
        InputError: the file is damaged, cannot be read without running code, or holds no state.
    """
    name = manifest.files[rank] if rank < manifest.ranks else None
    if name is None:
        return None
    path = folder / name
    try:
        with zipfile.ZipFile(path) as parts:  # as torch.save makes it, with check sums that torch.load does not look at
            if damaged := parts.testzip():
                raise InputError(f"{path}: expected what was written, found another check sum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch names no class for what may be wrong with a file
        raise InputError(f"{path}: expected a checkpoint that torch.load(weights_only=True) reads, "
                         f"found: {str(error).splitlines()[0]}") from error  # fmt: skip
    if not isinstance(state, dict) or not {"opt", "batches", "buffers"} <= state.keys():
        raise InputError(f"{path}: expected a state of a rank, found something else")
    return state


def check(manifest: Manifest, layout: Sequence[tuple[str, tuple[int, ...]]], config: dict[str, Any]) -> None:
    """Raise InputError if a set is of another model, or of a job that this one cannot go on with."""
    if manifest.layout != list(layout):
        ours, theirs = dict(layout), dict(manifest.layout)
        name = next((n for n in {**theirs, **ours} if ours.get(n) != theirs.get(n)), "their order")
        raise InputError(f"--resume: expected a checkpoint of this model, found a difference in {name}: "
                         f"{theirs.get(name, 'none')} in the checkpoint, {ours.get(name, 'none')} here")  # fmt: skip
    for name in ("data", *OPTIONS, "topology", "center_momentum", "coupling", "schedule", "budget"):
        if (found := manifest.config.get(name)) != config.get(name):
            option = name.replace("_", "-")
            raise InputError(f"--{option}: expected {found}, as in the checkpoint, found {config.get(name)}")


def clear(folder: Path, keep: Manifest | None) -> None:
    """Remove what is newer than a set, or everything: files of a job that died, which belong to another history."""
    if not folder.is_dir():
        return
    needed = set(keep.files) if keep else set()
    for file in folder.iterdir():
        match = _FILE.fullmatch(file.name) or _SET.fullmatch(file.name)
        newer = match is not None and (keep is None or int(match[match.lastindex or 1]) > keep.step)
        if (newer and file.name not in needed) or file.name.endswith(".tmp"):
            file.unlink()


def _parsed(path: Path) -> Manifest:
    try:
        found = json.loads(path.read_text())
        if found.pop("format") != FORMAT or found.pop("version") != VERSION:
            raise InputError(f"{path}: expected format {FORMAT!r} of version {VERSION}, found another")
        found["layout"] = [(str(name), tuple(map(int, shape))) for name, shape in found["layout"]]
        manifest = Manifest(**found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a checkpoint's manifest, found: {error}") from error
    if any(name is not None and not _FILE.fullmatch(name) for name in manifest.files):
        raise InputError(f"{path}: expected names of files beside it, found others")
    return manifest


def _name(rank: int, step: int) -> str:
    return f"rank-{rank:04}-{step:012}.pt"


def _replace(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file so that it is there whole or not at all, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copied(value: Any) -> Any:  # noqa: ANN401
    """Return a copy in host memory that later steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(part) for part in value)
    return value
