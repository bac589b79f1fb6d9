"""Jobs of `lsam train` that tools watch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsam_hpc.rundir.processes import Process, lives
from tests.helpers.mpis import ROOT, Mpi, environment

WORDS = ("--epochs", "10000", "--flush-seconds", "0.1", "--heartbeat-timeout", "3")


@contextmanager
def job(mpi: Mpi, out: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `lsam train`; kill it at the end."""
    flags, options = ([words[0]], words[1:]) if words[0] == "--enable-recovery" else ([], words)
    command = mpi.command(2, *flags, mpi.forked, "-m", "lsam_hpc", "train", "--out", str(out), *WORDS, *options)
    with (out.parent / "said").open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment(), cwd=ROOT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        with suppress(FileNotFoundError):
            for rank in processes(out):
                if lives([rank]):
                    os.kill(rank.number, signal.SIGKILL)


def processes(out: Path) -> list[Process]:
    """Return the ranks' processes."""
    return [Process(**process) for process in json.loads((out / "job.lock").read_text().splitlines()[0])["processes"]]
