"""Checkpoint sets: one file per rank, and a manifest that is written when all files of the set are complete.

A set is named by the global step at which it is due. Each rank writes at its own next step while training continues,
so a set is not a snapshot of the whole job; each file is consistent and records the version of the center it read.
"""

from __future__ import annotations

import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lsam_hpc.errors import InputError
from lsam_hpc.optim.parts import copied_to_host
from lsam_hpc.train.data import OPTIONS
from lsam_hpc.train.manifest import FILE, SET, Manifest, file_name, manifests, parsed
from lsam_hpc.util.files import replace_file
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)
BYTES = 32  # of a rank's file per parameter, at most for most optimizers; so much disk is left free by the logs
INCOMPLETE = 2  # sets that may wait for files of slow ranks; with more of them, a disk is probably full
SCAN_SECONDS = 0.2  # s between two scans for the other ranks' files

State = dict[str, Any]


class Checkpoints:
    """Writes this rank's files and, on the lowest living rank, the manifests; removes old sets.

    Args:
        folder: for the files; made if it does not exist.
        rank: of this process.
        ranks: number of ranks.
        layout: (name, shape) of each parameter.
        config: the job's options, for the manifest.
        keep: number of sets to keep.
        flush: flushes the log; called in the writing thread before each file: no checkpoint is ahead of the log.
        parts: neighbouring ranks that hold a chain together. Default 1.

    Attributes:
        pending: steps of the sets without a manifest of which this rank has written its file.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        ranks: int,
        *,
        layout: Sequence[tuple[str, tuple[int, ...]]],
        config: dict[str, Any],
        keep: int,
        flush: Callable[[], object],
        parts: int = 1,
    ) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: expected a folder that can be made, found: {error.strerror}") from error
        self.seconds = 0.0  # time taken to write the last file
        self._folder, self._rank, self._ranks, self._keep = folder, rank, ranks, keep
        self._layout, self._config, self._flush, self._parts = list(layout), config, flush, parts
        self._with_center: set[int] = set()  # steps of this rank's files that hold the center
        self._thread: threading.Thread | None = None
        self.pending: list[int] = []
        self._last_scan = 0.0
        self._error: OSError | RuntimeError | None = None  # why the last file was not written

    def write(self, step: int, state: State, *, center: bool = True) -> None:
        """Copy a state and write it in a thread, after the previous write has ended; warn once if the disk fails.

        Args:
            step: of the set.
            state: of this rank: tensors, numbers, strings, and lists and dicts of them.
            center: whether it holds the center. Default True.
        """
        self.wait()
        if center:
            self._with_center.add(step)
        copied = copied_to_host(state)
        self._thread = threading.Thread(target=self._write, args=(step, copied), name="lsam-checkpoint")
        self._thread.start()

    def write_now(self, step: int, copied: State, folder: Path | None = None) -> int:
        """Write a state, after the previous write has ended; return the file's size in bytes.

        Args:
            step: of the set.
            copied: of this rank, from `copied_to_host`.
            folder: for the file. Default: that of the other sets.

        Raises:
            OSError: the disk failed, as for `write_last_manifest`; RuntimeError: torch hides the disk's error.
        """
        self.wait()
        self._flush()
        path = (folder or self._folder) / file_name(self._rank, step)
        replace_file(path, lambda file: torch.save(copied, file))
        return path.stat().st_size

    def write_last_manifest(
        self, step: int, sizes: Sequence[int], folder: Path | None = None, *, finished: bool
    ) -> None:
        """Write the manifest of a set whose files are all written, and remove old sets.

        Args:
            step: of the set.
            sizes: of the ranks' files, B; 0 for a rank that failed.
            folder: for the manifest. Default: that of the other sets.
            finished: whether the job's budget is spent.
        """
        names = [file_name(rank, step) if size else None for rank, size in enumerate(sizes)]
        Manifest(step, self._layout, self._config, names, list(sizes), finished).write(folder or self._folder)
        if folder is None:
            self._remove_old()

    def wait(self) -> None:
        """Wait until the last `write` is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def write_manifests(self, failed: Sequence[int] = (), *, at_once: bool = False) -> None:
        """On the lowest living rank: write the manifests of complete sets, and remove old sets.

        Args:
            failed: ranks that will not write any more.
            at_once: scan the folder even if the last scan was less than `SCAN_SECONDS` ago.
        """
        alive = [rank for rank in range(self._ranks) if rank not in failed]
        if not self.pending or self._rank != min(alive, default=self._rank):
            return
        if not at_once and time.monotonic() - self._last_scan < SCAN_SECONDS:
            return
        self._last_scan = time.monotonic()
        try:
            self._write_manifests(alive)
        except OSError as error:  # tried again at the next scan
            self._report(error)

    def _write_manifests(self, alive: list[int]) -> None:
        written: dict[int, list[int]] = {}  # steps by rank
        for file in self._folder.iterdir():
            if match := FILE.fullmatch(file.name):
                written.setdefault(int(match[1]), []).append(int(match[2]))
        for step in list(self.pending):
            # A slow rank may have skipped sets: its next file then serves for them.
            chosen = [min((s for s in written.get(rank, []) if s >= step), default=None) for rank in range(self._ranks)]
            if any(chosen[rank] is None for rank in alive):
                continue
            names = [None if s is None else file_name(rank, s) for rank, s in enumerate(chosen)]
            if not self._has_center(names, step):
                self.pending.remove(step)  # the rank that held the center was lost before it wrote: no set
                continue
            sizes = [0 if name is None else (self._folder / name).stat().st_size for name in names]
            Manifest(step, self._layout, self._config, names, sizes).write(self._folder)
            self.pending.remove(step)
        if len(self.pending) > INCOMPLETE:
            self._remove_incomplete(written)
        self._remove_old()

    def _has_center(self, names: list[str | None], step: int) -> bool:
        """Return whether the center is in a set's files: those of a chain below this rank's, or this chain's."""
        below = self._rank // self._parts * self._parts
        chains = (names[at : at + self._parts] for at in range(0, below, self._parts))
        return step in self._with_center or any(None not in chain for chain in chains)

    def _write(self, step: int, state: State) -> None:
        self._flush()
        clock = time.perf_counter()
        try:
            replace_file(self._folder / file_name(self._rank, step), lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for some disk errors
            self._report(error)
            return
        self._report(None)
        self.seconds = time.perf_counter() - clock
        self.pending.append(step)

    def _report(self, error: OSError | RuntimeError | None) -> None:
        """Warn if the disk fails, until it works again."""
        if error is not None and self._error is None:
            warnings.warn(f"{self._folder}: checkpoint not written, training continues: {error}", stacklevel=2)
        elif error is None and self._error is not None:
            _LOG.info("%s: checkpoints are written again", self._folder)
        self._error = error

    def _remove_incomplete(self, written: dict[int, list[int]]) -> None:
        """Remove all files but each rank's newest of those that no manifest names: they may fill the disk.

        The newest ones serve for the incomplete sets, too.
        """
        sets = manifests(self._folder)
        last = int(SET.fullmatch(sets[-1].name)[1]) if sets else -1  # type: ignore[index]
        needed = {name for file in sets for name in parsed(file).files}
        for rank, steps in written.items():
            for step in sorted(steps)[:-1]:
                if step > last and (name := file_name(rank, step)) not in needed:
                    (self._folder / name).unlink()

    def _remove_old(self) -> None:
        """Remove all sets but the newest ones, and older files that no remaining set needs."""
        sets = manifests(self._folder)
        old, kept = sets[: -self._keep], sets[-self._keep :]
        if not old:
            return
        needed = {name for file in kept for name in parsed(file).files}
        first = int(SET.fullmatch(kept[0].name)[1])  # type: ignore[index]
        for file in old:
            file.unlink()
        for file in self._folder.iterdir():
            match = FILE.fullmatch(file.name)
            if match and file.name not in needed and int(match[2]) < first:
                file.unlink()


def load(folder: Path, manifest: Manifest, rank: int) -> State | None:
    """Return a rank's state, None if the set has no file of it.

    Raises:
        InputError: the file is damaged, cannot be read without running code, or holds no state.
    """
    name = manifest.files[rank] if rank < manifest.ranks else None
    if name is None:
        return None
    path = folder / name
    try:
        with zipfile.ZipFile(path) as parts:  # torch.save writes checksums, torch.load ignores them
            if damaged := parts.testzip():
                raise InputError(f"{path}: expected the checksums that were written, found another for {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load documents no exception class for damaged files
        raise InputError(
            f"{path}: expected a checkpoint that torch.load(weights_only=True) reads, "
            f"found: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(state, dict) or not {"opt", "batches", "buffers"} <= state.keys():
        raise InputError(f"{path}: expected the state of a rank, found something else")
    return state


def check(manifest: Manifest, layout: Sequence[tuple[str, tuple[int, ...]]], config: dict[str, Any]) -> None:
    """Raise InputError if a set is of another model, or of a job with incompatible options."""
    if manifest.layout != list(layout):
        ours, theirs = dict(layout), dict(manifest.layout)
        name = next((n for n in {**theirs, **ours} if ours.get(n) != theirs.get(n)), "their order")
        raise InputError(
            f"--resume: expected a checkpoint of this model, found a difference in {name}: "
            f"{theirs.get(name, 'none')} in the checkpoint, {ours.get(name, 'none')} in this job"
        )
    sharded = manifest.config.get("shard", "none")
    if sharded == "none" != config.get("shard", "none"):
        raise InputError(f"--shard: expected none, as in the checkpoint, found {config['shard']}")
    older = {  # not saved then
        "mode": manifest.config.get("schedule"),
        "selection": "none",
        "adversarial": "none",
        "context": config.get("context"),
    }
    names = ("data", *OPTIONS, "topology", "center_momentum", "coupling", "mode", "budget", "selection", "adversarial")
    for name in names:
        saved = manifest.config.get(name, older.get(name))
        if saved != config.get(name):
            option = name.replace("_", "-")
            raise InputError(f"--{option}: expected {saved}, as in the checkpoint, found {config.get(name)}")


def clear(folder: Path, keep: Manifest | None) -> None:
    """Remove files newer than a set, or all files if `keep` is None: they are of steps that will be trained again."""
    if not folder.is_dir():
        return
    needed = set(keep.files) if keep else set()
    for file in folder.iterdir():
        match = FILE.fullmatch(file.name) or SET.fullmatch(file.name)
        newer = match is not None and (keep is None or int(match[match.lastindex or 1]) > keep.step)
        if (newer and file.name not in needed) or file.name.endswith(".tmp"):
            file.unlink()
