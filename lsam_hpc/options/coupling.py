"""Options of the coupling between a chain and the center."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import NOT_NEGATIVE, Range, check, option
from lsam_hpc.options.schedules import CountOrSchedule, ScalarOrSchedule

Coupling = Literal["elastic", "kernel", "restart"]
COUPLINGS: tuple[Coupling, ...] = get_args(Coupling)
Budget = Literal["total", "per-rank"]
DELTA_RATIO = Range(above=1, infinite=True)


@dataclass(frozen=True)
class CouplingOptions:
    """The coupling of a chain with its center."""

    coupling: Coupling = option("elastic", "rule by which an exchange moves the chain and the center")
    pull: ScalarOrSchedule | None = option(
        None,
        "fraction of the gap between sample and center that an exchange adds to the center; default: 0.9 / chains",
        NOT_NEGATIVE,
    )
    period: CountOrSchedule = option(4, "local steps between exchanges", Range(least=1, whole=True, unit="steps"))
    stiffness: ScalarOrSchedule = option(
        0.1, "lambda of the Gaussian kernel, used by the coupling kernel", NOT_NEGATIVE
    )
    temperature: ScalarOrSchedule = option(
        0.0, "temperature of the Langevin noise; 0: mini-batch noise only", NOT_NEGATIVE
    )
    center_momentum: float = option(0.0, "momentum of the center's updates", Range(least=0, below=1))
    max_delay: int = option(
        1,
        "largest number of exchanges in flight; only the elastic coupling allows more than 1",
        Range(least=1, whole=True, unit="exchanges"),
    )
    max_delta_ratio: float = option(
        10.0,
        "largest accepted norm of a delta, as a multiple of the median of the last 64; after a longer one the "
        "chain restarts from the center",
        DELTA_RATIO,
    )
    seed: int = option(
        0,
        "seed of the Langevin noise; of `lsam train` also of the model and the data order",
        Range(least=0, below=1 << 31, whole=True),
    )


@dataclass(frozen=True)
class StepOptions:
    """The count of steps."""

    budget: Budget = option(
        "total", "total: a shared step counter, so that fast ranks take more steps; per-rank: equal shares"
    )


@dataclass(frozen=True)
class StartOptions:
    """The start of training with `LSAM`."""

    synchronous_steps: int = option(
        0,
        "first local steps, which all ranks take as one data-parallel chain; then the chains part (post-local SGD)",
        Range(least=0, whole=True, unit="steps"),
    )


def check_coupling(options: CouplingOptions) -> None:
    """Raise InputError for the first option that is out of range or excluded by another."""
    check(options)
    if options.max_delay > 1 and options.coupling != "elastic":
        # The others compute the gap to the center read by the previous exchange, which may be still in flight.
        raise InputError(f"max_delay: expected 1 with the coupling {options.coupling}, found {options.max_delay}")
