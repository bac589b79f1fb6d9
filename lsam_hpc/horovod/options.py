"""LSAM's options in a Horovod script: keywords override variables, which override a file; no torch."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lsam_hpc.errors import InputError
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.options.coupling import CouplingOptions
from lsam_hpc.options.files import convert, read_options, unknown_option
from lsam_hpc.options.logging import LoggingOptions
from lsam_hpc.options.option import kind, option

PREFIX = "LSAM_"
# LSAM_* variables that are not options: the file's name, and those of the installation and the tests.
OTHERS = ("LSAM_CONFIG", "LSAM_MPI", "LSAM_WHEELS", "LSAM_TEST_MPICH")
WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
OnePassAscent = Literal["dp-sat", "msam", "center"]
HorovodAscent = Literal["auto", "sam", "dp-sat", "msam", "center"]


@dataclass(frozen=True)
class Options(LoggingOptions, CommunicationOptions, CouplingOptions, AscentOptions):
    """Options of a Horovod script; as keywords, numbers may be schedules."""

    ascent: HorovodAscent = option(  # type: ignore[assignment]
        "auto", "direction of the ascent. auto: sam where step gets a closure, else dp-sat; the others have one pass"
    )
    group_ascent: Literal["averaged"] = option(
        "averaged", "gradient of the ascent in a group: the group's mean, which Horovod leaves in the backward pass"
    )
    eval_center: bool = option(True, "model.eval() loads the center, and model.train() the sample")
    save_center: bool = option(True, "model.state_dict() returns the center")
    out: str | None = option(None, "run directory for logs; default: no logs")
    overwrite: bool = option(False, "replace the run in out")

    @property
    def one_pass_ascent(self) -> OnePassAscent:
        """The ascent of steps without a closure."""
        return self.ascent if self.ascent == "msam" or self.ascent == "center" else "dp-sat"

    def described(self) -> dict[str, Any]:
        """Return the options for JSON, with callables as their repr."""
        return {name: repr(v) if callable(v) else v for name, v in dataclasses.asdict(self).items()}


HINTS: dict[str, Any] = typing.get_type_hints(Options)


def resolve(keywords: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> Options:
    """Return the options of a script.

    Args:
        keywords: keyword arguments of `DistributedOptimizer`.
        env: environment variables, such as LSAM_RHO=0.1 and LSAM_CONFIG=FILE.

    Raises:
        InputError: an option is unknown or has another type.
    """
    values: dict[str, Any] = {}
    if file := env.get("LSAM_CONFIG"):
        values |= read_options(Path(file), HINTS)
    for variable in sorted(env):
        if variable.startswith(PREFIX) and variable not in OTHERS:
            name = variable.removeprefix(PREFIX).lower()
            if name not in HINTS:
                raise InputError(unknown_option(variable, [PREFIX + known.upper() for known in HINTS]))
            values[name] = _typed(variable, env[variable], kind(HINTS[name]))
    for name, value in keywords.items():
        if name not in HINTS:
            raise InputError(f"DistributedOptimizer: {unknown_option(name, list(HINTS))}")
        values[name] = value if value is None or callable(value) else _typed(name, value, kind(HINTS[name]))
    options = Options(**values)
    if options.ascent not in (known := typing.get_args(HorovodAscent)):
        raise InputError(f"ascent: expected {', '.join(known)} in a Horovod script, found {options.ascent!r}")
    return options


def variable(name: str) -> str:
    """Return the name of an option's environment variable."""
    return PREFIX + name.upper()


def _typed(name: str, value: object, to: type) -> object:
    try:
        return convert(WORDS[value.lower()] if to is bool and isinstance(value, str) else value, to)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise InputError(f"{name}: expected {to.__name__}, found {value!r}") from error
