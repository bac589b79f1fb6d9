"""What is logged, as options: without torch, so that they can be checked before a job starts."""

from __future__ import annotations

import math
from typing import Literal, TypedDict

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.snapshot import COMPRESSIONS, DTYPES, Snapshots, check_states

Locking = Literal["auto", "on", "off", "best-effort"]
LOCKING: dict[str, bool | str | None] = {"auto": None, "on": True, "off": False, "best-effort": "best-effort"}


class LogOptions(TypedDict, total=False):
    """What is logged, and how."""

    sketch_every: int
    sketch_buckets: int
    sketch_groups: int
    sketch_states: str
    snapshot_every: str
    snapshot_states: str
    snapshot_ranks: str
    snapshot_dtype: str
    snapshot_compression: str
    flush_seconds: float
    hdf5_locking: Locking


DEFAULTS: LogOptions = {
    "sketch_every": 1,
    "sketch_buckets": 1024,
    "sketch_groups": 4,
    "sketch_states": "sample,center",
    "snapshot_every": "none",
    "snapshot_states": "sample,center",
    "snapshot_ranks": "all",
    "snapshot_dtype": "float32",
    "snapshot_compression": "gzip",
    "flush_seconds": 5.0,
    "hdf5_locking": "auto",
}
LOG_CHOICES: dict[str, tuple[str, ...]] = {
    "snapshot_ranks": ("all", "first"), "snapshot_dtype": tuple(DTYPES), "snapshot_compression": tuple(COMPRESSIONS),
    "hdf5_locking": tuple(LOCKING),
}  # fmt: skip


def check_log(options: LogOptions) -> None:
    """Raise InputError for the first option that is out of its range."""
    given: LogOptions = {**DEFAULTS, **options}
    for name, value, least in (
        ("sketch_every", given["sketch_every"], 0),
        ("sketch_buckets", given["sketch_buckets"], 1),
        ("sketch_groups", given["sketch_groups"], 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: expected a whole number >= {least}, found {value!r}")
    check_states("sketch_states", states_of(given["sketch_states"]))
    check_states("snapshot_states", states_of(given["snapshot_states"]))
    if not 0 < given["flush_seconds"] < math.inf:
        raise InputError(f"flush_seconds: expected a number of seconds > 0, found {given['flush_seconds']!r}")
    for name, known in LOG_CHOICES.items():
        if (choice := given[name]) not in known:  # type: ignore[literal-required]
            raise InputError(f"{name}: expected one of {', '.join(known)}, found {choice!r}")
    snapshots_of(given)


def states_of(text: str) -> tuple[str, ...]:
    """Return the names of states that an option lists."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def snapshots_of(given: LogOptions) -> Snapshots | None:
    """Return what is kept in full, None for nothing.

    Args:
        given: every option.

    Raises:
        InputError: one is out of its range, or a package that the compression needs is missing.
    """
    every: str | int = given["snapshot_every"]
    if every == "none":
        return None
    if every != "log":
        if not str(every).isdecimal() or int(every) < 1:
            raise InputError(f"snapshot_every: expected a number of steps >= 1, log or none, found {every!r}")
        every = int(every)
    try:
        return Snapshots(
            every, states_of(given["snapshot_states"]), given["snapshot_dtype"], given["snapshot_compression"]
        )
    except InputError as error:  # a package that the compression needs
        raise InputError(f"snapshot_compression:{str(error).partition(':')[2]}") from error
