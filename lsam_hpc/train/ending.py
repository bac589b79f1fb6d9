"""The end of a training job: evaluation, the table, and the last files, in another place if the disk fails."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lsam_hpc.rundir.elsewhere import persist, places, write_elsewhere
from lsam_hpc.rundir.runlog import RunLog
from lsam_hpc.train.checkpoint import Checkpoints, State
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler
from lsam_hpc.train.evaluation import SUBSET, results
from lsam_hpc.train.job import Chain
from lsam_hpc.train.sharding import gathered
from lsam_hpc.train.table import table
from lsam_hpc.util.files import replace_file


@dataclass(frozen=True)
class Ending:
    """How a job ended."""

    speaks: bool  # this is the lowest rank that did not fail
    failed_ranks: list[int]
    elsewhere: bool  # the last files are not in the run directory
    results: Mapping[str, float]  # of this rank; empty if the run was stopped


class _LastFiles:
    """The last files of a rank: its checkpoint and, on the lowest living rank, the center and the manifest."""

    def __init__(
        self, folder: Path, checkpoints: Checkpoints, step: int, state: State | None, *, finished: bool
    ) -> None:
        self._folder, self._checkpoints, self._step, self._finished = folder, checkpoints, step, finished
        self._state = state  # None: no checkpoint is wanted
        self._center: State | None = None
        self._thread = ThreadPoolExecutor(1, "lsam-last-checkpoint")
        self._written: Future[tuple[int | None, str]] | None = None
        if state is not None:  # it is written during the evaluation
            self._written = self._thread.submit(persist, lambda: checkpoints.write_now(step, state))

    @property
    def names(self) -> str:
        """What they are, with a verb."""
        names = ["the last checkpoint"] * (self._state is not None) + ["center.pt"] * (self._center is not None)
        return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'}"

    def write(self, center: State | None) -> tuple[int, str]:
        """Write them to the run directory; return the checkpoint's size in bytes, and why that failed or "".

        Args:
            center: the model's state at the center, on the lowest living rank of a finished job.
        """
        reason, size, self._center = "", 0, center
        if center is not None:
            _, reason = persist(lambda: _save_center(center, self._folder))
        if self._written is not None:
            written, failure = self._written.result()
            size, reason = written or 0, failure or reason
        return size, reason

    def write_manifest(self, sizes: Sequence[int]) -> str:
        """Write the manifest, after all ranks have written; return why that failed, or ""."""
        if self._state is None:
            return ""
        return persist(lambda: self._checkpoints.write_last_manifest(self._step, sizes, finished=self._finished))[1]

    def write_elsewhere(self, run_dir: Path, when: str) -> tuple[int, Path | None]:
        """Write them to the first of the other places that accepts them; return the checkpoint's size and the place."""

        def write(folder: Path) -> int:
            (folder / "checkpoints").mkdir(exist_ok=True)
            if self._center is not None:
                _save_center(self._center, folder / "checkpoints")
            if self._state is None:
                return 0
            return self._checkpoints.write_now(self._step, self._state, folder / "checkpoints")

        size, folder = write_elsewhere(places(run_dir, when), write)
        return size or 0, folder

    def write_manifest_elsewhere(self, sizes: Sequence[int], folder: Path) -> None:
        """Write the manifest beside this rank's files in another place; it names the files of all ranks."""
        if self._state is not None:
            persist(
                lambda: self._checkpoints.write_last_manifest(
                    self._step, sizes, folder / "checkpoints", finished=self._finished
                )
            )

    def close(self) -> None:
        self._thread.shutdown()


def finish(
    chain: Chain,
    run_dir: Path,
    log: RunLog,
    scheduler: CheckpointScheduler,
    checkpoints: Checkpoints,
    *,
    stopped: bool,
    start: datetime,
) -> Ending:
    """Evaluate, print the table and write the last files; every living rank calls it.

    Args:
        chain: of this rank.
        run_dir: the run directory.
        log: of this rank; it is closed.
        scheduler: closed too.
        checkpoints: writes the last one.
        stopped: whether the job ends before its budget is spent; then nothing is evaluated.
        start: of this attempt, the same on every rank.
    """
    model, opt, dataset = chain.model, chain.opt, chain.dataset
    rank, ranks = opt.comm.rank, opt.comm.size
    result = {"seconds": scheduler.seconds, **opt.stats()}
    if not stopped:
        result |= results("sample", model, dataset)
    shared = dict(result)
    records = opt.rendezvous(list(shared.values()))
    step = int(records["global_step"].max())
    state = scheduler.last_state() if scheduler.enabled or stopped else None
    files = _LastFiles(run_dir / "checkpoints", checkpoints, step, state, finished=not stopped)
    log.last_states(opt)
    while True:
        failed_ranks = opt.failed_ranks
        center = None
        speaker = min(set(range(ranks)) - set(failed_ranks), default=0)
        speaks = rank == speaker
        if rank // chain.parts == speaker // chain.parts and not stopped:
            center = _evaluate_center(chain, result, keep=speaks)
        if speaks and not stopped:
            shown = _results(records, shared, rank, result, failed_ranks)[:: chain.parts]
            lost = sorted({failed // chain.parts for failed in failed_ranks})
            print(table(shown, lost, "rank" if chain.parts == 1 else "chain"), flush=True)
        size, reason = files.write(center)
        saved = opt.rendezvous([size, bool(reason)])
        if opt.failed_ranks == failed_ranks:
            break  # else the evaluating rank may have failed: the next one evaluates
    sizes, failures = _living(saved, failed_ranks)
    if speaks and not failures.any():
        reason = files.write_manifest(sizes)
    _, failures = _living(opt.rendezvous([size, bool(reason)]), failed_ranks)
    elsewhere = bool(failures.any())
    if elsewhere:
        size, folder = files.write_elsewhere(run_dir, f"{start:%Y%m%d-%H%M%S}")
        sizes, nowhere = _living(opt.rendezvous([size, folder is None]), failed_ranks)
        if speaks:
            if folder is not None:
                files.write_manifest_elsewhere(sizes, folder)
            problem = f"{run_dir}: expected a directory that can be written, found: {reason or 'an error on a rank'}"
            _report(problem, files.names, folder, np.flatnonzero(nowhere).tolist(), opt.communication.names)
    files.close()
    scheduler.close()
    opt.close()
    log.close(None if stopped else result)
    return Ending(speaks, opt.failed_ranks, elsewhere, {} if stopped else result)


def _evaluate_center(chain: Chain, result: dict[str, float], *, keep: bool) -> State | None:
    """Add the center's numbers to a result, and return a copy of the model's state at the center, if it is to be kept.

    Collective in a chain of several ranks that hold the model together.
    """
    model, dataset = chain.model, chain.dataset
    with chain.opt.center(model, dataset.train_x[:SUBSET].split(256)):
        result |= results("center", model, dataset)
        state = gathered(model.state_dict(), keep=keep)
    return state if keep else None


def _results(
    records: NDArray[Any], shared: Mapping[str, float], rank: int, result: Mapping[str, float], failed: Sequence[int]
) -> list[dict[str, float]]:
    """Return the ranks' results from the records of a rendezvous; this rank's has the center's numbers too."""
    results = [dict(zip(shared, map(float, row), strict=False)) for row in records["results"]]
    for lost in failed:
        results[lost]["steps"] = float(records["step"][lost])
    results[rank] |= result
    return results


def _living(records: NDArray[Any], failed: Sequence[int]) -> tuple[list[int], NDArray[np.bool_]]:
    """Return the sizes of the ranks' files, and which ranks failed to write: the two numbers of a rendezvous."""
    numbers = records["results"][:, :2].copy()
    numbers[list(failed)] = 0
    return [int(size) for size in numbers[:, 0]], numbers[:, 1] != 0


def _save_center(state: State, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    replace_file(folder / "center.pt", lambda file: torch.save(state, file))


def _report(problem: str, names: str, folder: Path | None, nowhere: Sequence[int], hosts: Sequence[str]) -> None:
    """Print where the last files are."""
    host = socket.gethostname()
    where = "nowhere" if folder is None else f"in {host}:{folder}"
    others = sorted({name for name in hosts if name != host})
    if others and folder is not None:
        where += f", those of other nodes' ranks in the same place there ({', '.join(others)})"
    if nowhere and folder is not None:
        where += f", those of ranks {', '.join(map(str, nowhere))} nowhere"
    print(f"lsam train: {problem}: {names} {where}", file=sys.stderr, flush=True)
