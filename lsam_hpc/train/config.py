"""The options of `lsam train`: from flags, a TOML or YAML file, or both."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.linkoptions import CHOICES, LinkOptions, check_links
from lsam_hpc.logoptions import LOG_CHOICES, LogOptions, check_log
from lsam_hpc.optim.hyper import ASCENTS, BUDGETS, COUPLINGS, METRICS, SCHEDULES, check_hyperparameters
from lsam_hpc.optionfile import kind, read_options, unknown_option
from lsam_hpc.train.names import AUGMENTS, DATASETS, MODELS
from lsam_hpc.train.profile import SYNTAX as PROFILE
from lsam_hpc.train.profile import profiled
from lsam_hpc.train.stragglers import SYNTAX as STRAGGLERS

LR_SCHEDULES = ("cosine", "constant")
MASKS = ("all", "norm", "random", "fisher")
DEVICES = ("auto", "cpu", "cuda")
OPTIMIZERS = ("sgd", "lars")
LR_SCALINGS = ("none", "linear")
REDUCE = ("auto", "horovod", "mpi")
RESUME = ("no", "auto", "must")
ON_LOST = ("continue", "stop")


def _option(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run; the defaults are the quickstart's."""

    data: str = _option("digits", f"the data set, of {', '.join(DATASETS)}, or one's own MODULE:FUNCTION")
    data_dir: str | None = _option(None, "directory with the data set's files in their canonical layout")
    subset: int | None = _option(None, "training images that are used, each class with its share; default: all")
    validation: int = _option(0, "training images that are held out and tested on, in place of the test set")
    label_noise: float = _option(0.0, "part of the training labels that is replaced by wrong ones")
    data_seed: int = _option(0, "of --subset, --validation and --label-noise, whatever --seed is")
    augment: str = _option("none", "standard: training images are moved, and mirrored where that makes sense", AUGMENTS)
    cutout: int = _option(0, "side of a square that is blanked in each training image, in pixels")
    model: str | None = _option(None, f"of {', '.join(MODELS)}, or one's own MODULE:FUNCTION; default: by --data")
    epochs: float = _option(120.0, "passes over the training set, all ranks together")
    steps: int | None = _option(None, "steps of all chains together, in place of --epochs")
    batch_size: int = _option(32, "images in a rank's mini-batch")
    optimizer: str = _option("sgd", "the base optimizer; lars: its rates follow the layers' norms", OPTIMIZERS)
    lr: float = _option(0.1, "learning rate")
    lr_scaling: str = _option("none", "linear: --lr is for 256 images and grows with a chain's batch", LR_SCALINGS)
    momentum: float = _option(0.9, "momentum of the base optimizer")
    weight_decay: float = _option(5e-4, "weight decay of the base optimizer")
    lr_schedule: str = _option("cosine", "learning rate against total steps", LR_SCHEDULES)
    warmup: float = _option(0.05, "part of the steps in which the learning rate rises linearly")
    rho: float = _option(0.05, "ascent radius of SAM")
    gamma: float = _option(1e-12, "constant that keeps the ascent's division finite")
    ascent: str = _option("exact", "where the ascent's gradient comes from; stale: one pass per step", ASCENTS)
    metric: str = _option("l2", "of the ascent; adaptive: ASAM", METRICS)
    mask: str = _option("all", "coordinates that the ascent moves", MASKS)
    coupling: str = _option("elastic", "how chains and center move each other", COUPLINGS)
    pull: float | None = _option(None, "fraction of the gap that an exchange moves the center; default: 0.9 / ranks")
    period: int = _option(4, "local steps between exchanges")
    stiffness: float = _option(0.1, "lambda of the Gaussian kernel (coupling kernel)")
    temperature: float = _option(0.0, "T of the Langevin noise; 0: mini-batch noise only")
    center_momentum: float = _option(0.0, "momentum of what is added to the center")
    schedule: str = _option("async", "lockstep exchanges in rank order, reproducible to the bit", SCHEDULES)
    overlap: bool = _option(True, "a thread of its own does the exchanges")
    max_delay: int = _option(1, "exchanges in flight at most")
    max_jump: float = _option(10.0, "a delta longer than so many medians of the last ones is refused")
    wire_dtype: str = _option("float32", "half precision: half the bytes of an exchange", CHOICES["wire_dtype"])
    topology: str = _option("center", "what a chain is coupled to", CHOICES["topology"])
    graph: str = _option("random", "whom a rank reads (topology gossip)", CHOICES["graph"])
    degree: int = _option(1, "how many others a rank reads (topology gossip)")
    publish: str = _option("none", "what others can read of a chain", CHOICES["publish"])
    synchronous: bool = _option(False, "data parallel: all ranks are one chain, and the center is its sample")
    group_size: int = _option(1, "neighbouring ranks that are one chain and average their gradients")
    group_ascent: str = _option("own", "own: m-SAM; averaged: the group's mean", CHOICES["group_ascent"])
    reduce: str = _option("auto", "what averages gradients; auto: Horovod if it is installed", REDUCE)
    stragglers: str = _option("none", f"slows ranks down: {STRAGGLERS}")
    silent_after: float = _option(30.0, "seconds without a sign of life after which a rank counts as lost")
    budget: str = _option("total", "total: a fast rank takes more of the steps; per-rank: equal shares", BUDGETS)
    sketch_every: int = _option(1, "steps between sketches, made at exchanges; 1: at each exchange; 0: none")
    sketch_buckets: int = _option(1024, "numbers in a sketch, per layer group")
    sketch_groups: int = _option(4, "layer groups that are sketched one by one, at most")
    sketch_states: str = _option("sample,center", "what is sketched, of sample, center and perturbation")
    snapshot_every: str = _option("none", "steps between full states, or log: after 1, 2, 4, 8, ... steps")
    snapshot_states: str = _option("sample,center", "what is kept in full, of sample, center and perturbation")
    snapshot_ranks: str = _option("all", "whose states are kept in full", LOG_CHOICES["snapshot_ranks"])
    snapshot_dtype: str = _option("float32", "of snapshots on disk", LOG_CHOICES["snapshot_dtype"])
    snapshot_compression: str = _option("gzip", "of snapshots on disk", LOG_CHOICES["snapshot_compression"])
    flush_seconds: float = _option(5.0, "how old a logged row may get before it is on disk")
    hdf5_locking: str = _option("auto", "of the logs; off for file systems without locks", LOG_CHOICES["hdf5_locking"])
    resume: str = _option("no", "go on from the newest checkpoint in --out; auto: if there is one", RESUME)
    checkpoint_every: str = _option("auto", "steps of all ranks between checkpoints; auto: from --mtbf; none")
    checkpoint_keep: int = _option(2, "checkpoints that stay")
    mtbf: float = _option(24.0, "hours between failures of the job, from which auto follows")
    stop_signals: str = _option("USR1,TERM", "signals after which the job writes a checkpoint and ends with code 3")
    end_margin: float = _option(120.0, "seconds before the batch job's end at which it does the same")
    requeue: int = _option(0, "how often at most the job puts itself into Slurm's queue again when it was stopped")
    on_lost: str = _option("continue", "with ranks lost: train on, or write a checkpoint and end", ON_LOST)
    seed: int = _option(0, "of the model, the data order and the noise")
    profile: str = _option("none", f"local steps of each rank that PyTorch's profiler traces: {PROFILE}, as 10:20")
    device: str = _option("auto", "where to train", DEVICES)
    out: str | None = _option(None, "the run directory; default: runs/DATA-DATE")
    overwrite: bool = _option(False, "replace the run in --out")

    def check(self) -> None:
        """Raise InputError for the first option that is out of its range."""
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices is not None and value is not None and value not in choices:
                raise InputError(f"{_flag(option.name)}: expected one of {', '.join(choices)}, found {value!r}")
        for name, named, known in (("data", self.data, DATASETS), ("model", self.model, MODELS)):
            if named is not None and named not in known and ":" not in named:
                raise InputError(f"--{name}: expected one of {', '.join(known)} or MODULE:FUNCTION, found {named!r}")
        if self.data != "digits" and ":" not in self.data and self.data_dir is None:
            raise InputError(f"--data-dir: expected the directory of {self.data}'s files, found none")
        _at_least("epochs", self.epochs, 0, strictly=True)
        if self.steps is not None:
            _at_least("steps", self.steps, 1)
        _at_least("batch_size", self.batch_size, 1)
        if self.subset is not None:
            _at_least("subset", self.subset, 1)
        for name in ("validation", "data_seed", "cutout"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.label_noise <= 1:
            raise InputError(f"--label-noise: expected a number from 0 to 1, found {self.label_noise}")
        if self.optimizer == "lars" and find_spec("pytorch_optimizer") is None:
            raise InputError("--optimizer lars: expected pytorch_optimizer (pip install 'lsam-hpc[train]'), found none")
        _at_least("seed", self.seed, 0)
        if self.seed >= 1 << 31:
            raise InputError(f"--seed: expected a number below 2^31, found {self.seed}")
        for name in ("lr", "momentum", "weight_decay", "rho", "gamma"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.warmup < 1:
            raise InputError(f"--warmup: expected a number >= 0 and < 1, found {self.warmup}")
        profiled(self.profile)
        if self.checkpoint_every not in ("auto", "none") and not (
            self.checkpoint_every.isdecimal() and int(self.checkpoint_every) > 0
        ):
            raise InputError(
                f"--checkpoint-every: expected a number of steps >= 1, auto or none, found {self.checkpoint_every!r}"
            )
        _at_least("checkpoint_keep", self.checkpoint_keep, 1)
        _at_least("mtbf", self.mtbf, 0, strictly=True)
        _at_least("end_margin", self.end_margin, 0)
        _at_least("requeue", self.requeue, 0)
        if self.resume != "no" and self.out is None:
            raise InputError("--out: expected the directory of the run to go on with, found none")
        if self.resume != "no" and self.overwrite:
            raise InputError("--resume: expected it or --overwrite, found both")
        with flags():
            check_hyperparameters(
                self.coupling, 0.0 if self.pull is None else self.pull, self.period, self.stiffness, self.temperature,
                self.center_momentum, self.max_delay,
            )  # fmt: skip
            check_log(self.logs())

    def together(self, ranks: int) -> TrainConfig:
        """Return the options with what `synchronous` means for so many ranks."""
        if not self.synchronous:
            return self
        if self.group_size != 1:
            raise InputError(f"--group-size: expected it or --synchronous, found both ({self.group_size})")
        return dataclasses.replace(self, group_size=ranks, coupling="restart", pull=1.0)

    def links(self) -> LinkOptions:
        """Return the options that say how ranks meet."""
        return {name: getattr(self, name) for name in LinkOptions.__annotations__ if hasattr(self, name)}  # type: ignore[return-value]

    def logs(self) -> LogOptions:
        """Return the options that say what is logged."""
        return {name: getattr(self, name) for name in LogOptions.__annotations__}  # type: ignore[return-value]

    def check_links(self, ranks: int) -> None:
        """Raise InputError for the first of `links` that is wrong with so many ranks."""
        with flags():
            check_links(self.links(), self.schedule == "lockstep", ranks)


@contextmanager
def flags() -> Iterator[None]:
    """Turn the name that an InputError begins with into the flag's."""
    try:
        yield
    except InputError as error:
        name, rest = str(error).split(":", 1)
        raise InputError(f"{_flag(name)}:{rest}") from error


def parse(argv: Sequence[str]) -> TrainConfig:
    """Return the options that a command line gives: flags over the file named by --config over the defaults.

    Raises:
        InputError: an option is unknown, or out of its range.
    """
    parser = Parser(
        prog="lsam train", description="Train a network with LSAM, under mpirun or srun.", allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file with options, named as here; flags win")
    hints = typing.get_type_hints(TrainConfig)
    for option in dataclasses.fields(TrainConfig):
        text = option.metadata["help"]
        if option.default is not None:
            text += f" (default: {option.default})"
        if hints[option.name] is bool:
            parser.add_argument(
                _flag(option.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            parser.add_argument(
                _flag(option.name), type=kind(hints[option.name]), default=argparse.SUPPRESS, help=text,
                metavar="{" + ",".join(option.metadata["choices"]) + "}" if option.metadata["choices"] else None,
            )  # fmt: skip
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(
            unknown_option(unknown[0], [_flag(f.name) for f in dataclasses.fields(TrainConfig)] + ["--config"])
        )
    given = vars(known)
    file = given.pop("config")
    options = read_options(Path(file), hints) if file else {}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in given:
            options.pop(other, None)  # flags win, also over the other way to say how long
    options |= given
    if "steps" in options and "epochs" in options:
        raise InputError("--steps: expected it or --epochs, found both")
    config = TrainConfig(**options)
    config.check()
    return config


def _at_least(name: str, value: float, low: float, strictly: bool = False) -> None:
    if not (low < value if strictly else low <= value) or value == math.inf:
        raise InputError(f"{_flag(name)}: expected a finite number {'>' if strictly else '>='} {low}, found {value}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
