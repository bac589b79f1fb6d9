"""Kills writers at random moments and checks their files: `python -m tests.helpers.kills FOLDER TRIALS SEED`.

A trial is a run of 4 ranks: processes that log and flush without a pause and report the number of flushed rows. SIGKILL
ends them one after the other. In every second trial two readers poll the run meanwhile, one with this package and one
with HDF5's SWMR mode. Prints a line of JSON; an assertion that fails names the trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, verify
from tests.helpers.logs import CONFIG, LAYOUT, SKETCH, assert_rows, attributes, write_rows

RANKS = 4


def main(folder: Path, trials: int, seed: int) -> dict[str, int]:
    """Run the trials; return counts."""
    chance = random.Random(seed)
    counts = {"killed": 0, "rows": 0, "flushed": 0, "polls": 0, "ended": 0}
    for trial in range(trials):
        path = folder / f"run-{seed}-{trial}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG))
        writers = [fork(partial(write, path, rank, chance.random())) for rank in range(RANKS)]
        flushed = [wait_for_first(pipe) for _, pipe in writers]
        pollers = [fork(partial(poll, path)) for poll in (poll_ours, poll_swmr)[: 2 * (trial % 2)]]
        for _, pipe in pollers:
            counts["polls"] += wait_for_first(pipe)
        for process, _ in writers:
            time.sleep(chance.random() * 0.03)
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            counts["killed"] += os.WIFSIGNALED(status)
        for process, pipe in pollers:
            os.kill(process, signal.SIGTERM)
            _, status = os.waitpid(process, 0)
            assert status == 0, f"trial {trial}: a reader failed"
            counts["polls"] += drain(pipe)
        run = Run(path)
        for rank, (_, pipe) in enumerate(writers):
            least = max(flushed[rank], drain(pipe))
            counts["rows"] += assert_rows(run, rank, least)
            counts["flushed"] += least
            counts["ended"] += run.result(rank) is not None
        assert run.problems == [], f"trial {trial}"
        assert verify(run) == [], f"trial {trial}"
    return counts


def write(path: Path, rank: int, random_number: float, report: Callable[[int], None]) -> None:
    """Log until killed; some writers finish before."""
    chance = random.Random(random_number)
    row, last = 0, chance.choice([chance.randrange(500, 6000), 10**9, 10**9])
    with TrajectoryWriter(
        path,
        rank,
        LAYOUT,
        attributes(RANKS),
        flush_seconds=0.01,
        sketch=SKETCH,
        snapshots=Snapshots(states=("sample",)),
    ) as writer:
        while row < last:
            end = min(row + chance.randrange(1, 400), last)
            write_rows(writer, row, end)
            row = end
            assert writer.flush()
            report(row)
        writer.close({"steps": row})
    signal.pause()


def poll_ours(path: Path, report: Callable[[int], None]) -> None:
    """Read the whole run again and again until SIGTERM; the number of rows must not fall."""
    seen = [0] * RANKS
    polls = 0
    while not _stopped:
        run = Run(path)
        seen = [assert_rows(run, rank, seen[rank]) for rank in range(RANKS)]
        polls += 1
        report(polls)


def poll_swmr(path: Path, report: Callable[[int], None]) -> None:
    """Read a rank's file through one open handle in HDF5's SWMR mode, until SIGTERM."""
    seen = 0
    try:
        file = h5py.File(path / "rank-0000.h5", libver="latest", swmr=True)
    except OSError:  # its writer has closed it
        return
    with file:
        column = file["step/iteration"]
        while not _stopped:
            column.refresh()
            assert len(column) >= seen
            seen = len(column)
            report(1)


_stopped: list[int] = []  # not empty after SIGTERM


def fork(work: Callable[[Callable[[int], None]], None]) -> tuple[int, int]:
    """Start a process; return its id and a pipe of the numbers that it reports."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        signal.signal(signal.SIGTERM, lambda *_: _stopped.append(1))
        os.set_blocking(writing, False)
        work(lambda number: _report(writing, number))
        status = 0
    except (AssertionError, InputError, OSError) as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _report(pipe: int, number: int) -> None:
    with contextlib.suppress(BlockingIOError):  # the pipe is full: a later number replaces this one
        os.write(pipe, number.to_bytes(8, "little"))


def wait_for_first(pipe: int) -> int:
    """Return the first number that is reported, within a minute."""
    assert select.select([pipe], [], [], 60)[0], "nothing was flushed"
    return int.from_bytes(os.read(pipe, 8), "little")


def drain(pipe: int) -> int:
    """Return the last number that a process reported before it ended, 0 if none."""
    reported = b""
    while more := os.read(pipe, 65536):
        reported += more
    os.close(pipe)
    return int.from_bytes(reported[-8:], "little")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
