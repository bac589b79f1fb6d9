"""Scales of the values in figures: limits, contour levels, and ticks of logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

LEVELS = 12  # about so many contour levels
WIDE = 30.0  # largest / smallest value above which a scale is logarithmic
LOG = "log scale"  # what the label of a logarithmic axis or colour bar says
# Multiples of powers of ten at which contours and ticks are, from few to many.
MULTIPLES = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))


@dataclass(frozen=True)
class Scale:
    """How a figure's values are drawn; None: as suits the values.

    Args:
        logarithmic: whether the colours or the axis of the values are logarithmic.
        limits: smallest and largest value of the colours or the axis.
        levels: number of contour levels, about, or the levels.

    Raises:
        InputError: the limits are not ascending, or a number is out of range.
    """

    logarithmic: bool | None = None
    limits: tuple[float, float] | None = None
    levels: int | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        limits, levels = self.limits, self.levels
        if limits and not -math.inf < limits[0] < limits[1] < math.inf:
            raise InputError(f"--limits: expected a smaller and a larger number, found {limits[0]:g},{limits[1]:g}")
        if isinstance(levels, int) and levels < 2:
            raise InputError(f"--levels: expected 2 or more, found {levels}")
        if isinstance(levels, tuple) and (len(set(levels)) < 2 or not all(map(math.isfinite, levels))):
            raise InputError(f"--levels: expected a number, or two levels or more, found {','.join(map(str, levels))}")
        if self.logarithmic:
            for name, least in (("limits", limits), ("levels", levels if isinstance(levels, tuple) else None)):
                if least and min(least) <= 0:
                    raise InputError(f"--{name}: expected numbers > 0 on a logarithmic scale, found {min(least):g}")


AUTOMATIC = Scale()


def levels(
    values: Sequence[NDArray[np.float64]], count: int = LEVELS, scale: Scale = AUTOMATIC
) -> tuple[NDArray[np.float64], bool]:
    """Return contour levels for several arrays together, and whether they are logarithmic.

    Args:
        values: arrays of any shape; values that are not finite do not count.
        count: number of levels, about. Default: 12.
        scale: what the user chose.

    Returns:
        Levels, ascending: round numbers that cover the values, or the limits and round numbers between them.

    Raises:
        InputError: the scale is logarithmic and the values and limits are not above 0.
    """
    known = np.concatenate([v[np.isfinite(v)] for v in values] or [np.empty(0)])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if scale.limits:
        low, high = scale.limits
    if high <= low:
        high = low + (abs(low) or 1.0) * 1e-3
    logarithmic = low > 0 and high / low > WIDE if scale.logarithmic is None else scale.logarithmic
    if isinstance(scale.levels, tuple):
        return np.unique(np.asarray(scale.levels, np.float64)), logarithmic and min(scale.levels) > 0
    if logarithmic and low <= 0:
        raise InputError(f"--log: expected values > 0, found {low:g}: name two positive --limits")
    at = _round(low, high, scale.levels or count, logarithmic=logarithmic)
    if scale.limits:
        at = np.array([low, *at[(at > low) & (at < high)], high])
    return at, logarithmic


def _round(low: float, high: float, count: int, *, logarithmic: bool) -> NDArray[np.float64]:
    """Return about `count` round numbers, the first at most `low`, the last at least `high`."""
    from matplotlib.ticker import MaxNLocator

    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        step = max(1, round((last - first) / count))
        decades = 10.0 ** np.arange(first, last + step, step)
        for multiples in MULTIPLES if step == 1 else MULTIPLES[:1]:
            at = np.outer(decades, multiples).ravel()
            start = int(np.searchsorted(at, low * (1 + 1e-9), side="right")) - 1
            at = at[max(start, 0) : int(np.searchsorted(at, high * (1 - 1e-9))) + 1]
            if len(at) >= 0.8 * count:
                return at
    locator = MaxNLocator(nbins=max(count - 1, 1), steps=[1, 2, 2.5, 5, 10])
    at = np.asarray(locator.tick_values(low, high), np.float64)
    return at[at > 0] if logarithmic and (at > 0).sum() > 1 else at


def number(value: float) -> str:
    """Return a number as ticks and labels show it: 20, 0.5, 1e-2, 2.5e-3, 1e4."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa, power = f"{float(mantissa):g}", int(exponent)
    return f"{value:.3g}" if -1 <= power < 3 else f"{mantissa}e{power}"


def log_axis(axis: Any) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Make an axis logarithmic, with ticks such as 1e-3 and 1e-2; add `LOG` to its label.

    Call it after drawing: an axis of less than two decades gets more ticks.

    Args:
        axis: `ax.xaxis` or `ax.yaxis` of matplotlib, with values above 0.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = sorted(axis.get_view_interval())
    if low <= 0:  # limits of the linear scale before
        low = min(axis.get_minpos(), high) / 2
        getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    axis.set_major_locator(FixedLocator(log_places(low, high).tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axis.set_minor_formatter(NullFormatter())
    if LOG not in (text := axis.get_label_text()):
        axis.set_label_text(f"{text}, {LOG}" if text else LOG)


def log_ticks(axis: Any) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Write the ticks of an axis whose scale is set already, as "symlog", as `log_axis` does; say so in its label."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_label_text(f"{axis.get_label_text()}, {LOG}")


def log_places(low: float, high: float, most: int = 6) -> NDArray[np.float64]:
    """Return at most `most` round numbers between two limits: powers of ten, or multiples of them."""
    from matplotlib.ticker import MaxNLocator

    decades = np.arange(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1, dtype=float)
    for multiples in MULTIPLES[:4]:
        at = np.outer(10.0**decades, multiples).ravel()
        at = at[(at >= low * (1 - 1e-9)) & (at <= high * (1 + 1e-9))]
        if len(at) >= 3:
            return at[:: -(-len(at) // most)]
    at = np.asarray(MaxNLocator(nbins=3).tick_values(low, high), np.float64)
    return at[(at >= low) & (at <= high)]
