"""LSAM's options in a Horovod script: keywords, over LSAM_* variables, over a file, over the defaults; no torch."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from lsam_hpc.errors import InputError
from lsam_hpc.optionfile import convert, kind, read_options, unknown_option

PREFIX = "LSAM_"
# Variables of ours that are no options: the file's name, and what the installation and the tests use.
OTHERS = ("LSAM_CONFIG", "LSAM_MPI", "LSAM_WHEELS", "LSAM_TEST_MPICH")
WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

Hyper: TypeAlias = float | Callable[[int], float]


def _option(default: Any, text: str) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """What a script can be told besides what Horovod knows; numbers may be callables of the total step as keywords."""

    rho: float = _option(0.05, "ascent radius of SAM")
    gamma: float = _option(1e-12, "constant that keeps the ascent's division finite")
    ascent: str = _option("auto", "auto: exact where step is given a closure, else stale; exact; stale")
    metric: str = _option("l2", "of the ascent: l2; adaptive: ASAM")
    mask: str = _option("all", "coordinates that the ascent moves: all, norm, random, fisher")
    coupling: str = _option("elastic", "how chains and center move each other: elastic, kernel, restart")
    pull: float | None = _option(None, "fraction of the gap that an exchange moves the center; default: 0.9 / chains")
    period: int = _option(4, "local steps between exchanges")
    stiffness: float = _option(0.1, "lambda of the Gaussian kernel (coupling kernel)")
    temperature: float = _option(0.0, "T of the Langevin noise; 0: mini-batch noise only")
    center_momentum: float = _option(0.0, "momentum of what is added to the center")
    schedule: str = _option("async", "async; lockstep: exchanges in rank order, for tests")
    group_size: int = _option(1, "neighbouring ranks that are one chain and average their gradients by Horovod")
    overlap: bool = _option(True, "a thread of its own does the exchanges")
    max_delay: int = _option(1, "exchanges in flight at most")
    max_jump: float = _option(10.0, "a delta longer than so many medians of the last ones is refused")
    wire_dtype: str = _option("float32", "float32; bfloat16, float16: half the bytes of an exchange")
    topology: str = _option("center", "what a chain is coupled to: center, gossip, leader")
    graph: str = _option("random", "whom a rank reads (topology gossip): random, ring, exponential")
    degree: int = _option(1, "how many others a rank reads (topology gossip)")
    publish: str = _option("none", "what others can read of a chain: none, sample, perturbed")
    silent_after: float = _option(30.0, "seconds without a sign of life after which a rank counts as lost")
    eval_center: bool = _option(True, "model.eval() holds the center until model.train()")
    save_center: bool = _option(True, "model.state_dict() gives the center")
    seed: int = _option(0, "of the Langevin noise and the sketches")
    out: str | None = _option(None, "the run directory for logs")
    overwrite: bool = _option(False, "replace the run in out")
    sketch_every: int = _option(1, "steps between sketches, made at exchanges; 1: at each exchange; 0: none")
    sketch_buckets: int = _option(1024, "numbers in a sketch, per layer group")
    sketch_groups: int = _option(4, "layer groups that are sketched one by one, at most")
    sketch_states: str = _option("sample,center", "what is sketched, of sample, center and perturbation")
    snapshot_every: str = _option("none", "steps between full states, or log: after 1, 2, 4, 8, ... steps")
    snapshot_states: str = _option("sample,center", "what is kept in full, of sample, center and perturbation")
    snapshot_ranks: str = _option("all", "whose states are kept in full: all, first")
    snapshot_dtype: str = _option("float32", "of snapshots on disk")
    snapshot_compression: str = _option("gzip", "of snapshots on disk")
    flush_seconds: float = _option(5.0, "how old a logged row may get before it is on disk")
    hdf5_locking: str = _option("auto", "of the logs; off for file systems without locks")

    def only(self, names: Mapping[str, object]) -> dict[str, Any]:
        """Return those of the options that are among some names."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name in names}

    def described(self) -> dict[str, Any]:
        """Return the options as JSON can hold them: callables by their names."""
        return {name: repr(v) if callable(v) else v for name, v in dataclasses.asdict(self).items()}


HINTS: dict[str, Any] = typing.get_type_hints(Options)


def resolve(keywords: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> Options:
    """Return the options that hold.

    Args:
        keywords: that `DistributedOptimizer` was given.
        env: with LSAM_RHO=0.1 and so on, and LSAM_CONFIG=FILE.

    Raises:
        InputError: an option is unknown, or of another type.
    """
    found: dict[str, Any] = {}
    if file := env.get("LSAM_CONFIG"):
        found |= read_options(Path(file), HINTS)
    for variable in sorted(env):
        if variable.startswith(PREFIX) and variable not in OTHERS:
            name = variable.removeprefix(PREFIX).lower()
            if name not in HINTS:
                raise InputError(unknown_option(variable, [PREFIX + known.upper() for known in HINTS]))
            found[name] = _typed(variable, env[variable], kind(HINTS[name]))
    for name, value in keywords.items():
        if name not in HINTS:
            raise InputError(f"DistributedOptimizer: {unknown_option(name, list(HINTS))}")
        found[name] = value if value is None or callable(value) else _typed(name, value, kind(HINTS[name]))
    options = Options(**found)
    if options.ascent not in ("auto", "exact", "stale"):
        raise InputError(f"ascent: expected auto, exact or stale in a Horovod script, found {options.ascent!r}")
    return options


def variable(name: str) -> str:
    """Return the variable of an option."""
    return PREFIX + name.upper()


def _typed(name: str, value: object, to: type) -> object:
    try:
        return convert(WORDS[value.lower()] if to is bool and isinstance(value, str) else value, to)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise InputError(f"{name}: expected {to.__name__}, found {value!r}") from error
