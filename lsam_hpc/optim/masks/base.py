"""The interface of masks, and the base class of those that keep a mask of every coordinate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.optim.state import known_in, numbered
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.option import default

DENSITY: float = default(AscentOptions, "mask_density")
REFRESH = 100  # ascents between two masks
REFRESH_SSAM = 1000  # the same of SSAM-F, whose masks cost most, and SSAM-D


class Mask:
    """Selects every coordinate; base class of the other masks.

    A mask of whole parameters (`selects`) also excludes the other parameters from the gradient norm. An elementwise
    mask (`multiply_`) is applied after the norm over the selected parameters is taken, as in its paper.

    Calls in a step: `begin_passes`, `prepare`, `multiply_`, `moved`, `end_passes`, `before_descent`, `end_step`. A step
    that fails ends with `end_passes`. In phases `begin_passes` and `end_passes` are called by `SAM.masked` only: a mask
    must be right without them, and may save work with them.
    """

    partial = False  # True if `selects` excludes parameters
    elementwise = False  # True if `multiply_` has an effect
    in_steps = False  # True if `begin_passes`, `end_passes`, `before_descent` or `end_step` has an effect
    sam_only = False  # True if the ascent must take the gradient of its own step

    def selects(self, param: Tensor) -> bool:
        """Return True if the ascent moves a coordinate of the parameter."""
        return True

    @contextmanager
    def passes(self, params: Sequence[Tensor], *, ascent_only: bool) -> Iterator[None]:
        """Return a context for the passes of a step: `begin_passes`, and at its end `end_passes`."""
        try:
            self.begin_passes(params, ascent_only=ascent_only)
            yield
        finally:
            self.end_passes()

    def begin_passes(self, params: Sequence[Tensor], *, ascent_only: bool) -> None:
        """Switch off `requires_grad` of parameters whose gradient the passes need not compute.

        Args:
            params: all parameters of the optimizer, in order; also below.
            ascent_only: True if the gradient of the first pass is used by the ascent only.
        """

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Read the gradients of an ascent before they are scaled; called once per ascent, with the parameters at x."""

    def multiply_(self, params: Sequence[Tensor], direction: list[Tensor]) -> None:
        """Multiply the ascent's direction by the mask, in place: by 0 where it does not move, or by any number."""

    def moved(self, params: Sequence[Tensor]) -> None:
        """Read the selected parameters at x + e; called after every ascent, before the pass there."""

    def end_passes(self) -> None:
        """Restore `requires_grad`; called after the last pass, also when it failed."""

    def before_descent(self, params: Sequence[Tensor]) -> None:
        """Read the gradients of the descent, or set some to None so that the base optimizer skips these parameters."""

    def end_step(self, params: Sequence[Tensor]) -> None:
        """Prepare the next step, after the base optimizer's; also called when an overflow made it skip its step."""

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the state to save for an exact resume; params: all parameters of the optimizer, in order."""
        return {"kind": type(self).__name__}

    def check(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Raise InputError if a state was not saved by a mask of this kind for such parameters."""
        if state["kind"] != type(self).__name__:
            raise InputError(f"state_dict: expected the state of the mask {type(self).__name__}, found {state['kind']}")

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Load what `state_dict` returned."""


class Sparse(Mask):
    """Base class of elementwise masks of 0 and 1 that are replaced every `refresh` ascents or steps.

    Args:
        density: share of the coordinates that move, > 0 and <= 1.
        refresh: ascents or steps between two masks, >= 1.
    """

    elementwise = True

    def __init__(self, density: float, refresh: int) -> None:
        self.density = check_density(density)
        if refresh < 1:
            raise InputError(f"mask: expected a refresh period of 1 ascent or more, found {refresh!r}")
        self.refresh = refresh
        self._count = 0  # ascents or steps so far
        self._masks: dict[Tensor, Tensor] = {}  # by the parameter; those without one are dense

    def multiply_(self, params: Sequence[Tensor], direction: list[Tensor]) -> None:
        """Set the coordinates outside the current mask to 0, in place."""
        pairs = [(d, self._masks[p]) for p, d in zip(params, direction, strict=True) if p in self._masks]
        if pairs:
            torch._foreach_mul_([d for d, _ in pairs], [mask for _, mask in pairs])

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the count of ascents or steps and the masks."""
        masks, made = numbered(self._masks, params, partial(torch.ones_like, dtype=torch.bool))
        return {**super().state_dict(params), "ascents": self._count, "masks": masks, "made": made}

    def check(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Raise InputError if a state was not saved by a mask of this kind for such parameters."""
        super().check(state, params)
        for i, mask in state["masks"].items():
            if i >= len(params) or mask.shape != params[i].shape:
                raise InputError(
                    f"state_dict: expected masks of the parameters' shapes, found {tuple(mask.shape)} for parameter {i}"
                )

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._count = state["ascents"]
        self._masks = {params[i]: m for i, m in known_in(state["masks"], state["made"], params).items()}


class OfGradients(Sparse, ABC):
    """Base class of masks that are made when the gradients of an ascent are known; arguments as of `Sparse`."""

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Make new masks every `refresh` ascents, and for parameters without a mask."""
        if self._count % self.refresh == 0:
            self._masks = {}
        new = [(p, g) for p, g in zip(params, grads, strict=True) if p not in self._masks and not self.dense(p)]
        if new:
            masks = self.make([g for _, g in new])
            self._masks.update((p, mask) for (p, _), mask in zip(new, masks, strict=True))
        self._count += 1

    def dense(self, param: Tensor) -> bool:
        """Return True if all coordinates of the parameter always move."""
        return False

    @abstractmethod
    def make(self, grads: list[Tensor]) -> list[Tensor]:
        """Return one boolean mask per gradient."""


def check_density(density: float) -> float:
    """Return the density; raise InputError if it is not > 0 and <= 1."""
    if not 0 < density <= 1:
        raise InputError(f"mask: expected a density > 0 and <= 1, found {density!r}")
    return density


def largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return boolean masks of the `count` largest of all scores together, each on its scores' device."""
    flat = torch.cat([score.reshape(-1).to(scores[0].device) for score in scores])
    top = torch.zeros_like(flat, dtype=torch.bool)
    top[flat.topk(count).indices] = True
    pieces = top.split([score.numel() for score in scores])
    return [piece.view(score.shape).to(score.device) for piece, score in zip(pieces, scores, strict=True)]


def generator_of(seed: int, number: int) -> torch.Generator:
    """Return a generator on the CPU for the draw of this number: unlike one generator it has no state to save."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
