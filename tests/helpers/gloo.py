"""Runs a function on the ranks of torch.distributed, as processes with gloo: python -m tests.helpers.gloo ..."""

from __future__ import annotations

import datetime
import faulthandler
import importlib.util
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.helpers.forked import forked
from tests.helpers.mpis import ROOT, environment

START = 60.0  # seconds in which a process starts and meets the others


def run(function: Callable[[Path], None], folder: Path, ranks: int = 2, limit: float = 150.0) -> None:
    """Run a function on each rank; raise AssertionError that says which ranks failed or hung, and where.

    Args:
        function: at the top level of a test module; called with the folder, in a process group of all ranks.
        folder: for the function's results; must be empty of earlier runs of the function.
        ranks: number of processes. Default 2.
        limit: seconds that the function may take. Default 150.
    """
    python, name = forked(sys.executable, environment()), function.__name__
    logs = [folder / f"{name}-{rank}.log" for rank in range(ranks)]
    words = ["-m", "tests.helpers.gloo", function.__code__.co_filename, name, str(folder), str(ranks), str(limit)]
    jobs = []
    for rank, log in enumerate(logs):
        with log.open("wb") as file:
            jobs.append(
                subprocess.Popen(
                    [python, *words, str(rank)],
                    cwd=ROOT,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            )
    deadline = time.monotonic() + START + limit
    failed = False
    while any(job.poll() is None for job in jobs) and time.monotonic() < deadline:
        if not failed and any(job.poll() for job in jobs):  # the others may wait for this rank
            failed, deadline = True, min(deadline, time.monotonic() + 5)
        time.sleep(0.01)
    hung = [rank for rank, job in enumerate(jobs) if job.poll() is None]
    for job in jobs:
        job.kill()
        job.wait()
    reports = [
        f"rank {rank} {'did not end' if rank in hung else f'ended with {job.returncode}'}:\n{log.read_text()}"
        for rank, (job, log) in enumerate(zip(jobs, logs, strict=True))
        if rank in hung or job.returncode
    ]
    assert not reports, f"{name} on {ranks} ranks\n" + "\n".join(reports)


def main(file: str, name: str, folder: str, ranks: str, limit: str, rank: str) -> None:
    """Run one rank."""
    from torch import distributed

    spec = importlib.util.spec_from_file_location(f"gloo_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    store, patience = distributed.FileStore(f"{folder}/{name}-store", int(ranks)), datetime.timedelta(seconds=START)
    distributed.init_process_group("gloo", store=store, timeout=patience, world_size=int(ranks), rank=int(rank))
    faulthandler.dump_traceback_later(float(limit), exit=True)
    try:
        getattr(module, name)(Path(folder))
        distributed.barrier()
    except BaseException:  # noqa: BLE001 - it is printed, and the exit code is 1
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # a normal exit may abort in gloo's threads


if __name__ == "__main__":
    main(*sys.argv[1:])
