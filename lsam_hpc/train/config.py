"""The options of `lsam train`: from flags, a TOML or YAML file, or both."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.options.ascent import AscentOptions, check_ascent
from lsam_hpc.options.command_line import add_flags, flag, flags_in_messages
from lsam_hpc.options.communication import CommunicationOptions, check_communication, check_start
from lsam_hpc.options.coupling import CouplingOptions, StepOptions, check_coupling
from lsam_hpc.options.files import read_options, unknown_option
from lsam_hpc.options.logging import LoggingOptions, check_logging
from lsam_hpc.options.option import check, part
from lsam_hpc.options.recipes import RECIPES
from lsam_hpc.options.training import BUILT_IN, DATASETS, MODELS, TEXT_MODELS, TrainingOptions
from lsam_hpc.train.profile import profiled
from lsam_hpc.train.tracking import trackers
from lsam_hpc.util.arguments import Parser


@dataclass(frozen=True)
class TrainConfig(LoggingOptions, CommunicationOptions, StepOptions, CouplingOptions, AscentOptions, TrainingOptions):
    """Every option of a training run; the defaults are the quickstart's."""

    def check(self) -> None:
        """Raise InputError for the first option that is out of range or excluded by another."""
        check(self, flag)
        for name, known in (("data", DATASETS), ("model", (*MODELS, *TEXT_MODELS))):
            value = getattr(self, name)
            if value is not None and value not in known and ":" not in value:
                raise InputError(f"--{name}: expected one of {', '.join(known)} or MODULE:FUNCTION, found {value!r}")
        if self.data not in BUILT_IN and ":" not in self.data and self.data_dir is None:
            raise InputError(f"--data-dir: expected the directory of {self.data}'s files, found none")
        if self.ascent == "sampa" and (self.group_size > 1 or self.synchronous):
            raise InputError("--ascent: expected another ascent than sampa in groups")
        if self.synchronous and self.synchronous_start:
            raise InputError("--synchronous and --synchronous-start exclude each other")
        if self.selection != "none":
            for name, only in (("ascent", "sam"), ("adversarial", "none"), ("stragglers", "none"), ("rho_from", 0.0)):
                if (value := getattr(self, name)) != only:
                    raise InputError(f"{flag(name)}: expected {only} with --selection {self.selection}, found {value}")
            if self.rho == 0:
                raise InputError(f"--rho: expected > 0 with --selection {self.selection}, found {self.rho}")
        if self.shard != "none":
            self._check_shard()
        if self.optimizer in ("lars", "lamb") and find_spec("pytorch_optimizer") is None:
            raise InputError(
                f"--optimizer {self.optimizer}: expected pytorch_optimizer (pip install 'lsam-hpc[train]'), found none"
            )
        if self.optimizer == "tvlars" and self.warmup:
            raise InputError(f"--warmup: expected 0 with --optimizer tvlars, which replaces it, found {self.warmup}")
        profiled(self.profile)
        trackers(self.track)
        every = self.checkpoint_every
        if every not in ("auto", "none") and not (every.isdecimal() and int(every) > 0):
            raise InputError(f"--checkpoint-every: expected a number of steps >= 1, auto or none, found {every!r}")
        if self.resume != "no" and self.out is None:
            raise InputError("--out: expected the directory of the run to continue, found none")
        if self.resume != "no" and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        with flags_in_messages():
            check_ascent(part(self, AscentOptions))
            check_coupling(part(self, CouplingOptions))
            check_start("synchronous_start", self.synchronous_start, self.topology, self.ascent)
            check_logging(part(self, LoggingOptions))

    def _check_shard(self) -> None:
        """Raise InputError for the first option that sharded chains exclude."""
        excluded = (
            ("optimizer", ("sgd", "adamw")),
            ("mask", ("all", "norm")),
            ("topology", ("center",)),
            ("publish", ("none",)),
            ("reduce", ("auto",)),
            ("clip_coordinates", (0.0,)),
            ("selection", ("none",)),
            ("adversarial", ("none",)),
            ("channels_last", (False,)),
            ("curvature_every", (0,)),
        )
        for name, allowed in excluded:
            if (value := getattr(self, name)) not in allowed:
                expected = " or ".join(map(str, allowed)) if allowed != (False,) else "none"
                raise InputError(f"{flag(name)}: expected {expected} with --shard {self.shard}, found {value}")

    @property
    def parts(self) -> int:
        """Number of ranks that hold a model together."""
        return self.group_size if self.shard != "none" else 1

    def together(self, ranks: int) -> TrainConfig:
        """Return the options; with `synchronous`, one group of all ranks whose sample is the center."""
        if not self.synchronous:
            return self
        if self.group_size != 1:
            raise InputError(f"--group-size and --synchronous exclude each other, found --group-size {self.group_size}")
        return dataclasses.replace(self, group_size=ranks, coupling="restart", pull=1.0)

    def check_communication(self, ranks: int) -> None:
        """Raise InputError for the first option of the communication that is wrong for this number of ranks."""
        options = part(self, CommunicationOptions)
        with flags_in_messages():
            if self.shard != "none" and ranks % self.group_size == 0:
                options = dataclasses.replace(options, group_size=1)  # a chain counts as a rank
            check_communication(options, ranks)


def parse(argv: Sequence[str]) -> TrainConfig:
    """Return the options of a command line: flags override the file of --config, that the recipe, that the defaults.

    Raises:
        InputError: an option is unknown or out of range.
    """
    parser = Parser(
        prog="lsam train", description="Train a network with LSAM, under mpirun or srun.", allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file with options, named as here; flags win")
    parser.add_argument(
        "--recipe", metavar="NAME", help=f"options that work together: {', '.join(RECIPES)}; others win"
    )
    add_flags(parser, TrainConfig)
    known, unknown = parser.parse_known_args(argv)
    names = [option.name for option in dataclasses.fields(TrainConfig)]
    if unknown:
        raise InputError(unknown_option(unknown[0], [*map(flag, names), "--config", "--recipe"]))
    flags = vars(known)
    file, recipe = flags.pop("config"), flags.pop("recipe")
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"--recipe: expected one of {', '.join(RECIPES)}, found {recipe}")
    options = dict(RECIPES.get(recipe, {}))
    given = read_options(Path(file), typing.get_type_hints(TrainConfig)) if file else {}
    options |= given
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in flags:
            options.pop(other, None)  # --steps overrides the file's epochs, and --epochs its steps
    options |= flags
    if options.get("synchronous") and "synchronous_start" not in {**given, **flags}:
        options.pop("synchronous_start", None)  # of the recipe
    if "steps" in options and "epochs" in options:
        raise InputError("--steps and --epochs exclude each other")
    config = TrainConfig(**options)
    config.check()
    return config
