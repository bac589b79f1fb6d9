"""LSAM's options in a Horovod script: keywords, over LSAM_* variables, over a file, over the defaults; no torch."""

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
# Variables of ours that are no options: the file's name, and what the installation and the tests use.
OTHERS = ("LSAM_CONFIG", "LSAM_MPI", "LSAM_WHEELS", "LSAM_TEST_MPICH")
WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Options(LoggingOptions, CommunicationOptions, CouplingOptions, AscentOptions):
    """Options of the drop-in; numbers may be functions of the global step where they are keywords."""

    ascent: Literal["auto", "exact", "stale"] = option(  # type: ignore[assignment]
        "auto", "gradient of the ascent. auto: exact where step gets a closure, else stale; exact; stale"
    )
    group_ascent: Literal["averaged"] = option(
        "averaged", "gradient of the ascent in a group: the group's mean, which Horovod leaves in the backward pass"
    )
    eval_center: bool = option(True, "model.eval() holds the center until model.train()")
    save_center: bool = option(True, "model.state_dict() returns the center")
    out: str | None = option(None, "run directory for logs; default: no logs")
    overwrite: bool = option(False, "replace the run in out")

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
