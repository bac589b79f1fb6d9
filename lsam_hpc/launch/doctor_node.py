"""Checks of `lsam doctor` on the nodes: memory, and the file system that runs are written to."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path

from lsam_hpc import preflight
from lsam_hpc.launch.doctor_report import Finding, Level, Ranks, by_value

GOOD_ROOM = 128 << 20  # bytes of /dev/shm per rank: windows of a model of 11 M weights and MPI's own
GOOD_MEMORY = 1 << 30  # bytes per rank
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def shared_memory(ranks: Ranks) -> Finding:
    """/dev/shm has room for windows."""
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
    """There is memory for each rank."""
    hosts = ranks.hosts()
    least = min(
        (free / hosts.count(host), host) for host, free in zip(hosts, ranks.each(_available), strict=True)
    )  # fmt: skip
    text = f"{least[0] / 1e9:.1f} GB a rank on {least[1]}"
    return Finding("memory", "ok" if least[0] >= GOOD_MEMORY else "warn", text)


def run_directory(ranks: Ranks) -> Finding:
    """All nodes see the folder that runs are written to, and it has room."""
    comm = ranks.comm

    def make() -> Path:
        handle, name = tempfile.mkstemp(prefix=".lsam-doctor-", dir=ranks.folder)
        os.close(handle)
        return Path(name)

    made = ranks.each(lambda: make() if comm.rank == 0 else None)[0]
    if isinstance(made, str):
        return Finding("run directory", "fail", f"{ranks.folder.absolute()}: {made}")
    seen = ranks.each(lambda: made.exists())
    if comm.rank == 0:
        made.unlink()
    blind = [rank for rank in ranks.first_of_nodes() if seen[rank] is not True]
    if blind:
        return Finding("run directory", "fail", f"{ranks.folder.absolute()} is not seen by rank {blind[0]}: expected a "
                       "file system that all nodes share")  # fmt: skip
    free = shutil.disk_usage(ranks.folder).free
    return Finding(
        "run directory", "ok" if free > 1e9 else "warn", f"{ranks.folder.absolute()}, {free / 1e9:.1f} GB free"
    )


def hdf5(ranks: Ranks) -> Finding:
    """HDF5 can write there, and lock its files."""
    first = ranks.comm.rank in ranks.first_of_nodes()

    def look() -> str:
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

    found = [text for text in ranks.each(look) if text]
    level: Level = "ok" if all(text.endswith(", locks") for text in found) else "warn"
    if any("locks" not in text for text in found):
        return Finding("hdf5", "fail", by_value(found))
    return Finding("hdf5", level, by_value(found))


def _available() -> int:
    """Return the bytes of memory that this process's node or job has left."""
    found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(found["MemAvailable"].split()[0]) * 1024
    for file in _LIMITS:
        if file.exists() and (text := file.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free
