"""Hyperparameters that are numbers or functions of the global step."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import TypeAlias

from lsam_hpc.errors import InputError

ScalarOrSchedule: TypeAlias = float | Callable[[int], float]
CountOrSchedule: TypeAlias = int | Callable[[int], int]


def evaluate(name: str, value: ScalarOrSchedule, step: int) -> float:
    """Return the hyperparameter's value at a global step.

    Raises:
        InputError: the value is not a finite number >= 0.
    """
    number = value(step) if callable(value) else value
    if type(number) is float and 0 <= number < math.inf:  # at every step; the checks below take several times as long
        return number
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not 0 <= number < math.inf:
        when = f" at global step {step}" if callable(value) else ""
        raise InputError(f"{name}: expected a finite number >= 0, found {number!r}{when}")
    return float(number)


def late(value: ScalarOrSchedule, start: int) -> Callable[[int], float]:
    """Return the schedule that is 0 before the global step `start` and the value from there on.

    Source, for the ascent radius: Zhou et al. 2024, "Sharpness-Aware Minimization Efficiently Selects Flatter Minima
    Late in Training" (arXiv 2410.10373).
    """
    return lambda step: 0.0 if step < start else value(step) if callable(value) else value


def evaluate_period(value: ScalarOrSchedule, step: int) -> int:
    """Return the period, a whole number of steps >= 1, at a global step.

    Raises:
        InputError: it is not such a number.
    """
    number = value(step) if callable(value) else value
    if type(number) is int and number >= 1:
        return number
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not 1 <= number < math.inf or number % 1:
        raise InputError(f"period: expected a whole number of steps >= 1, found {number!r}")
    return int(number)
