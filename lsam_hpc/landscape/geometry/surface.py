"""Values on a line or a plane: f, f_SAM, f with a gradient penalty, and the smoothed loss F that LSAM descends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import columns
from lsam_hpc.landscape.workqueue import evaluate

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch import Tensor

    from lsam_hpc.landscape.objective import Objective

KINDS = ("loss", "sam", "regularised", "smoothed")
LOSS, ERROR, SAM, REGULARISED = columns.LOSS, columns.ERROR, columns.SAM, columns.REGULARISED
SMOOTHED, SMOOTHED_ERROR, EFFECTIVE = columns.SMOOTHED, columns.SMOOTHED_ERROR, columns.EFFECTIVE
LOSSES = columns.LOSSES
WITH_RHO = {"sam", "regularised", "smoothed"}  # kinds that depend on the ascent radius
_COLUMNS = {
    "loss": (LOSS, ERROR),
    "sam": (SAM,),
    "regularised": (REGULARISED,),
    "smoothed": (SMOOTHED, SMOOTHED_ERROR, EFFECTIVE),
}


@dataclass(frozen=True)
class Settings:
    """What to evaluate at a point.

    Args:
        kinds: some of `"loss"`: f and the classification error in %; `"sam"`: f_SAM(x) = f(x + rho g / |g|) with the
            gradient g over all data; `"regularised"`: f(x) + rho |g|, the loss that SAM with all data implicitly
            descends (see below); `"smoothed"`: F(y) = -T log E[exp(-f_SAM(x) / T)], x ~ N(y, T / lambda I),
            by Monte Carlo, with its standard error and effective sample size. Default: loss.
        rho: ascent radius, in units of the parameters.
        temperature: T of the smoothing, in units of the loss.
        stiffness: lambda of the smoothing.
        samples: samples of the smoothing at each point. Default: 16.
        seed: of the smoothing's random numbers, which are the same at all points.

    Raises:
        InputError: a kind is unknown, or a number is out of range.

    The gradient of f + rho |g| is grad f + rho H g / |g|. SAM's, grad f(x + rho g / |g|), differs from it by O(rho^2),
    and not at all where f is quadratic. So a step of size lr differs from the gradient flow of f + rho |g| by
    O(lr rho^2 + lr^2), and training over a fixed time lr steps by O(rho^2 + lr): first order in lr if rho^2 is at most
    of the order of lr. Its value differs from f_SAM by rho^2 g'Hg / (2 |g|^2) + O(rho^3).

    Source: Compagnoni et al. 2023, "An SDE for Modeling SAM: Theory and Insights" (arXiv 2301.08203): the drift of SAM
    and of their DNSAM with all data. With mini-batches their drift of SAM has the mean of the mini-batches' |g|, which
    is larger, and noise is added that depends on the Hessian; neither is part of this value.
    """

    kinds: tuple[str, ...] = ("loss",)
    rho: float = 0.05
    temperature: float = 1.0
    stiffness: float = 1.0
    samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds) or set(self.kinds) - set(KINDS):
            raise InputError(f"kinds: expected some of {', '.join(KINDS)}, found {', '.join(self.kinds) or 'none'}")
        if not 0 <= self.rho < math.inf:
            raise InputError(f"rho: expected a number >= 0, found {self.rho}")
        if "smoothed" in self.kinds:
            for name in ("temperature", "stiffness"):
                if not 0 < getattr(self, name) < math.inf:
                    raise InputError(
                        f"{name}: expected a number > 0 for the smoothed loss, found {getattr(self, name)}"
                    )
            if self.samples < 2:
                raise InputError(f"samples: expected 2 or more, found {self.samples}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values at a point."""
        return tuple(name for kind in self.kinds for name in _COLUMNS[kind])


def values(objective: Objective, x: Tensor, settings: Settings) -> list[float]:
    """Return the values of `settings.columns` at a point x of shape (P,)."""
    import torch  # here, because figures of a surface do not need it

    from lsam_hpc.landscape.geometry.smoothing import smoothed

    def f_sam(at: Tensor) -> float:
        return objective(objective.ascent(at, settings.rho)).loss

    numbers: list[float] = []
    for kind in settings.kinds:
        if kind == "loss":
            numbers += objective(x)
        elif kind == "sam":
            numbers.append(f_sam(x))
        elif kind == "regularised":
            loss, gradient = objective.gradient(x)
            numbers.append(loss + settings.rho * float(torch.linalg.vector_norm(gradient)))
        else:
            numbers += smoothed(
                f_sam, x, settings.temperature, settings.stiffness, settings.samples, seed=settings.seed
            )
    return numbers


def scan(
    objective: Objective,
    origin: NDArray[Any] | Tensor,
    directions: NDArray[Any] | Tensor,
    x: NDArray[np.float64],
    y: NDArray[np.float64] | None = None,
    *,
    settings: Settings | None = None,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Surface:
    """Return the values at origin + x directions[0] + y directions[1], for all x and y.

    Args:
        objective: f.
        origin: the state at x = y = 0, shape (P,).
        directions: shape (1, P) for a line, (2, P) for a plane.
        x: coordinates along the first direction, shape (nx,).
        y: coordinates along the second direction, shape (ny,). Default: None, for a line.
        settings: what to evaluate. Default: loss and error.
        folder: see `workqueue.evaluate`, also for the arguments that follow.
        options: see there.
        comm: see there.
        title: see there.

    Raises:
        InputError: sizes do not fit, or the folder holds points of other options.
    """
    settings = settings or Settings()
    start = objective.vector(origin)
    along = [objective.vector(direction) for direction in directions]
    axes = [x] if y is None else [x, y]
    if len(along) != len(axes):
        raise InputError(
            f"directions: expected {len(axes)} for a {'line' if y is None else 'plane'}, found {len(along)}"
        )
    shape = tuple(len(axis) for axis in reversed(axes))

    def work(index: int) -> list[float]:
        place = reversed(np.unravel_index(index, shape))
        at = start.clone()
        for axis, direction, i in zip(axes, along, place, strict=True):
            at += float(axis[i]) * direction
        return values(objective, at, settings)

    table = evaluate(work, math.prod(shape), len(settings.columns), folder, options, comm=comm, title=title)
    return Surface(x, y, {name: table[:, i].reshape(shape) for i, name in enumerate(settings.columns)})
