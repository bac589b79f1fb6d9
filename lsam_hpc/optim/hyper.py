"""Hyperparameters: numbers or functions of the total step, and named choices."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Literal, TypeAlias

from lsam_hpc.errors import InputError

Hyper: TypeAlias = float | Callable[[int], float]
Coupling = Literal["elastic", "kernel", "restart"]
COUPLINGS: tuple[Coupling, ...] = ("elastic", "kernel", "restart")
Ascent = Literal["exact", "stale", "parallel"]
ASCENTS: tuple[Ascent, ...] = ("exact", "stale", "parallel")
Metric = Literal["l2", "adaptive"]
METRICS: tuple[Metric, ...] = ("l2", "adaptive")
Schedule = Literal["async", "lockstep"]
SCHEDULES: tuple[Schedule, ...] = ("async", "lockstep")
Budget = Literal["total", "per-rank"]
BUDGETS: tuple[Budget, ...] = ("total", "per-rank")


def evaluate(name: str, value: Hyper, step: int) -> float:
    """Return the hyperparameter's value at a total step.

    Raises:
        InputError: the value is not a finite number >= 0.
    """
    number = value(step) if callable(value) else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not 0 <= number < math.inf:
        when = f" at total step {step}" if callable(value) else ""
        raise InputError(f"{name}: expected a finite number >= 0, found {number!r}{when}")
    return float(number)


def evaluate_period(value: Hyper, step: int) -> int:
    """Return the period, a whole number of steps >= 1, at a total step.

    Raises:
        InputError: it is not such a number.
    """
    number = value(step) if callable(value) else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not 1 <= number < math.inf or number % 1:
        raise InputError(f"period: expected a whole number of steps >= 1, found {number!r}")
    return int(number)


def check_hyperparameters(
    coupling: str,
    pull: Hyper,
    period: Hyper,
    stiffness: Hyper,
    temperature: Hyper,
    center_momentum: float,
    max_delay: int = 1,
) -> None:
    """Raise InputError for the first hyperparameter of a chain that is out of its range at total step 0."""
    if coupling not in COUPLINGS:
        raise InputError(f"coupling: expected one of {', '.join(COUPLINGS)}, found {coupling!r}")
    evaluate("pull", pull, 0)
    evaluate_period(period, 0)
    evaluate("stiffness", stiffness, 0)
    evaluate("temperature", temperature, 0)
    if evaluate("center_momentum", center_momentum, 0) >= 1:
        raise InputError(f"center_momentum: expected a number >= 0 and < 1, found {center_momentum!r}")
    if isinstance(max_delay, bool) or not isinstance(max_delay, int) or max_delay < 1:
        raise InputError(f"max_delay: expected a whole number of exchanges >= 1, found {max_delay!r}")
    if max_delay > 1 and coupling != "elastic":
        # Their gap is taken against the center that the chain is coupled to, which the exchange before still brings.
        raise InputError(f"max_delay: expected 1 with the coupling {coupling}, found {max_delay}")
