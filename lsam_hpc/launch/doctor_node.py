"""Checks of `lsam doctor` on the nodes: memory, and the file system of the run directory."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path

from lsam_hpc.launch.doctor_report import Finding, Level, Ranks, by_value
from lsam_hpc.util import preflight

GOOD_ROOM = 128 << 20  # bytes of /dev/shm per rank: windows of a model of 11 million weights, and MPI's segments
GOOD_MEMORY = 1 << 30  # bytes per rank
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def shared_memory(ranks: Ranks) -> Finding:
    """Check that /dev/shm has room for windows."""
    hosts = ranks.hosts()
    least = min(
        (free / hosts.count(host), free, host)
        for host, free in zip(hosts, ranks.each(lambda: preflight.room()[1] or 0), strict=True)
    )
    text = f"{least[1] / 1e9:.2f} GB free on {least[2]}, {least[0] / 1e6:.0f} MB a rank"
    if least[0] < GOOD_ROOM and ranks.comm.size > 1:
        return Finding("/dev/shm", "warn", f"{text}: a large center will not fit")
    return Finding("/dev/shm", "ok", text)


def memory(ranks: Ranks) -> Finding:
    """Check that each rank has enough memory."""
    hosts = ranks.hosts()
    least = min((free / hosts.count(host), host) for host, free in zip(hosts, ranks.each(available), strict=True))
    text = f"{least[0] / 1e9:.1f} GB a rank on {least[1]}"
    return Finding("memory", "ok" if least[0] >= GOOD_MEMORY else "warn", text)


def run_directory(ranks: Ranks) -> Finding:
    """Check that all nodes see the folder of the runs, and that it has room."""
    comm = ranks.comm

    def make() -> Path:
        ranks.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".lsam-doctor-", dir=ranks.folder)
        os.close(handle)
        return Path(name)

    probe = ranks.each(lambda: make() if comm.rank == 0 else None)[0]
    if isinstance(probe, str):
        return Finding("run directory", "fail", f"{ranks.folder.absolute()}: {probe}")
    seen = ranks.each(lambda: probe.exists())
    if comm.rank == 0:
        probe.unlink()
    blind = [rank for rank in ranks.first_of_nodes() if seen[rank] is not True]
    if blind:
        return Finding(
            "run directory",
            "fail",
            f"{ranks.folder.absolute()} is not seen by rank {blind[0]}: expected a file system that all nodes share",
        )
    free = shutil.disk_usage(ranks.folder).free
    return Finding(
        "run directory", "ok" if free > 1e9 else "warn", f"{ranks.folder.absolute()}, {free / 1e9:.1f} GB free"
    )


def hdf5(ranks: Ranks) -> Finding:
    """Check that HDF5 can write and lock files in the folder of the runs."""
    first = ranks.comm.rank in ranks.first_of_nodes()

    def write_file() -> str:
        if not first:
            return ""
        h5py = importlib.import_module("h5py")
        with tempfile.TemporaryDirectory(prefix=".lsam-doctor-", dir=ranks.folder) as folder:
            text = f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}"
            for locking, word in ((True, "locks"), (False, "no locks: give --hdf5-locking off")):
                try:
                    with h5py.File(Path(folder) / "x.h5", "w", libver="latest", locking=locking) as file:
                        file["x"] = [1]
                except OSError:
                    continue
                return f"{text}, {word}"
        return f"{text}: no file can be written"

    texts = [text for text in ranks.each(write_file) if text]
    level: Level = "ok" if all(text.endswith(", locks") for text in texts) else "warn"
    if any("locks" not in text for text in texts):
        return Finding("hdf5", "fail", by_value(texts))
    return Finding("hdf5", level, by_value(texts))


CHECKS = (shared_memory, memory, run_directory, hdf5)  # of a process without MPI


def available() -> int:
    """Return the free memory of this process's node, or its job's limit if lower, in bytes."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    for file in _LIMITS:
        if file.exists() and (text := file.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free
