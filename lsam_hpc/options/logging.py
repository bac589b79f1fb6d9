"""Options of the logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import COUNT, Range, check, option
from lsam_hpc.trajectory.snapshot import COMPRESSIONS, DTYPES, Snapshots, check_states

SnapshotRanks = Literal["all", "first"]
Locking = Literal["auto", "on", "off", "best-effort"]
LOCKING: dict[str, bool | str | None] = {"auto": None, "on": True, "off": False, "best-effort": "best-effort"}
AT_LEAST_1 = Range(least=1, whole=True)


@dataclass(frozen=True)
class LoggingOptions:
    """The logs of a run."""

    sketch_every: int = option(
        1, "steps between sketches, which are taken at exchanges; 1: at each exchange; 0: none", COUNT
    )
    sketch_buckets: int = option(1024, "numbers per sketch and layer group", AT_LEAST_1)
    sketch_groups: int = option(4, "largest number of layer groups with a sketch of their own", AT_LEAST_1)
    sketch_states: str = option("sample,center", "states to sketch, of sample, center and perturbation")
    snapshot_every: str = option(
        "none",
        "steps between full states; log: after 1, 2, 4, 8, ... steps; each is taken at the next exchange, and the "
        "initial and the last state are kept too; none: no full states",
    )
    snapshot_states: str = option("sample,center", "states to store in full, of sample, center and perturbation")
    snapshot_ranks: SnapshotRanks = option("all", "ranks whose states are stored in full")
    snapshot_dtype: str = option("float32", f"type of stored states: {', '.join(DTYPES)}")
    snapshot_compression: str = option("gzip", f"compression of stored states: {', '.join(COMPRESSIONS)}")
    log_limit: float = option(
        1000.0,
        "largest size of a rank's log without full states, in MB; sketches are taken less often if all of them would "
        "need more than a tenth of it",
        Range(above=0, unit="MB"),
    )
    flush_seconds: float = option(
        5.0, "longest time until a logged row is on disk, in seconds", Range(above=0, unit="seconds")
    )
    hdf5_locking: Locking = option("auto", "locks on HDF5 files; off for file systems without locks")


def check_logging(options: LoggingOptions) -> None:
    """Raise InputError for the first option that is out of range, or for a missing compression package."""
    check(options)
    for name, known in (("snapshot_dtype", DTYPES), ("snapshot_compression", COMPRESSIONS)):
        if (value := getattr(options, name)) not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
    for name in ("sketch_states", "snapshot_states"):
        check_states(name, names_of(getattr(options, name)))
    snapshots_of(options)


def names_of(text: str) -> tuple[str, ...]:
    """Return the names of states in a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def snapshots_of(options: LoggingOptions) -> Snapshots | None:
    """Return the settings of the snapshots (states stored in full); None without snapshots.

    Raises:
        InputError: an option is out of range, or a package that the compression needs is missing.
    """
    every: str | int = options.snapshot_every
    if every == "none":
        return None
    if every != "log":
        if not str(every).isdecimal() or int(every) < 1:
            raise InputError(f"snapshot_every: expected a number of steps >= 1, log or none, found {every!r}")
        every = int(every)
    try:
        return Snapshots(every, names_of(options.snapshot_states), options.snapshot_dtype, options.snapshot_compression)
    except InputError as error:  # the compression's package is missing
        raise InputError(f"snapshot_compression:{str(error).partition(':')[2]}") from error
