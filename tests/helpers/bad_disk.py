"""Logs to a disk that is full or frozen; prints JSON: `python -m tests.helpers.bad_disk FOLDER KIND`, with a KIND of

full: the disk, which the caller prepares, is too small for the log; frozen: every write blocks for two seconds;
freed: the disk fails, then works again; reserved: another file leaves less room than is reserved, then it is removed;
refilled: as freed, 40 times, at random moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, verify
from lsam_hpc.trajectory import writer as writer_module
from tests.helpers.logs import CONFIG, LAYOUT, SKETCH, attributes, write_rows


def full(folder: Path) -> dict[str, object]:
    """Log more than fits on the disk."""
    flushed = 0
    with (
        warnings.catch_warnings(record=True) as caught,
        TrajectoryWriter(folder, 0, LAYOUT, attributes(), sketch=SKETCH, snapshots=Snapshots()) as writer,
    ):
        warnings.simplefilter("always")
        for row in range(0, 60_000, 500):
            write_rows(writer, row, row + 500)
            if writer.flush():
                flushed = row + 500
        writer.close({"steps": 60_000})
        texts = [str(warning.message) for warning in caught]
    return {"flushed": flushed, "warnings": texts, "dropped": writer.dropped}


def frozen(folder: Path) -> dict[str, object]:
    """Log while the disk is frozen, and measure the longest call."""
    with (
        warnings.catch_warnings(record=True) as caught,
        TrajectoryWriter(
            folder, 0, LAYOUT, attributes(), flush_seconds=0.01, sketch=SKETCH, snapshots=Snapshots(), queue_bytes=2**18
        ) as writer,
    ):
        warnings.simplefilter("always")
        write_rows(writer, 0, 1000)
        assert writer.flush()
        thawed = threading.Event()
        subprocess.run(["fsfreeze", "-f", folder], check=True, timeout=60)
        try:
            threading.Timer(2, thawed.set).start()
            row, longest = 1000, 0.0
            while not thawed.is_set():
                began = time.perf_counter()
                write_rows(writer, row, row + 1)
                longest = max(longest, time.perf_counter() - began)
                row += 1
                time.sleep(1e-4)
        finally:
            subprocess.run(["fsfreeze", "-u", folder], check=True, timeout=60)
        assert writer.flush()
        before = dict(writer.dropped)
        write_rows(writer, row, row + 100)
        assert writer.flush()
        texts = [str(warning.message) for warning in caught]
    return {"rows": row + 100, "longest": longest, "warnings": texts, "dropped": writer.dropped, "before": before}


def freed(folder: Path) -> dict[str, object]:
    """Log while another file fills the disk, and after it is removed."""
    return _interrupted(folder, 0, 0)


def reserved(folder: Path) -> dict[str, object]:
    """Log while another file leaves 2 MB, of which 4 MB are reserved, and after it is removed."""
    return _interrupted(folder, 4_000_000, 2_000_000)


def _interrupted(folder: Path, reserve: int, left: int) -> dict[str, object]:
    writer_module.RETRY = 0.1
    writer = TrajectoryWriter(
        folder, 0, LAYOUT, attributes(), sketch=SKETCH, snapshots=Snapshots(), reserve_bytes=reserve
    )
    with warnings.catch_warnings(record=True) as caught, writer:
        warnings.simplefilter("always")
        write_rows(writer, 0, 1000)
        assert writer.flush()
        status = os.statvfs(folder)
        with open(folder / "other", "wb", buffering=0) as other, contextlib.suppress(OSError):
            for _ in range((status.f_bavail * status.f_frsize - left) // 4096 + 1):
                other.write(bytes(4096))
        for row in range(1000, 20_000, 500):
            write_rows(writer, row, row + 500)
            writer.flush()
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        (folder / "other").unlink()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not any("goes on" in str(warning.message) for warning in caught):
            time.sleep(0.05)
            writer.flush()
        write_rows(writer, 20_000, 21_000)
        writer.close({"steps": 21_000})
        texts = [str(warning.message) for warning in caught]
    return {"free": free, "warnings": texts, "dropped": writer.dropped}


def refilled(folder: Path) -> dict[str, object]:
    """Log 40 runs: another file fills the disk at a random moment, and is removed before the log is closed."""
    wrong = []
    for number in range(40):
        chance, run, row = random.Random(number), folder / f"run-{number}", 0
        run.mkdir()
        (run / "config.json").write_text(json.dumps(CONFIG))
        writer = TrajectoryWriter(run, 0, LAYOUT, attributes(), flush_seconds=0.02, sketch=SKETCH)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for phase in range(3):
                if phase == 1:
                    with open(folder / "other", "wb", buffering=0) as other, contextlib.suppress(OSError):
                        while True:
                            other.write(bytes(65536))
                if phase == 2:
                    (folder / "other").unlink()
                for _ in range(chance.randrange(1, 20)):
                    count = chance.randrange(1, 40)
                    write_rows(writer, row, row + count)
                    row += count
                    time.sleep(0.003)  # the writer's thread works meanwhile
            writer.close({"steps": row})
        log = Run(run)
        if verify(log) or (log.result(0) or {}).get("steps") != row:
            wrong.append(number)
        shutil.rmtree(run)
    return {"wrong": wrong}


if __name__ == "__main__":
    kinds = {"refilled": refilled, "full": full, "frozen": frozen, "freed": freed, "reserved": reserved}
    print(json.dumps(kinds[sys.argv[2]](Path(sys.argv[1]))))
