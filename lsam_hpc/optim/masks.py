"""Masks: which coordinates the ascent moves."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lsam_hpc.errors import InputError
from lsam_hpc.options.ascent import AnyMask


class Mask:
    """Selects every coordinate; base class of the other masks.

    A mask of whole parameters (`selects`) also excludes the other parameters from the gradient norm. An elementwise
    mask (`multiply_`) is applied after the norm over all coordinates is taken, as in its paper.
    """

    partial = False  # True if `selects` excludes parameters
    elementwise = False  # True if `multiply_` has an effect

    def selects(self, param: Tensor) -> bool:
        """Return True if the ascent moves a coordinate of the parameter."""
        return True

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Read the gradients of an ascent before they are scaled; called once per ascent."""

    def multiply_(self, params: Sequence[Tensor], direction: list[Tensor]) -> None:
        """Set the coordinates that the ascent does not move to 0, in place."""

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the state to save for an exact resume; params: all parameters of the optimizer, in order."""
        return {"kind": type(self).__name__}

    def check(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Raise InputError if a state was not saved by a mask of this kind for such parameters."""
        if state["kind"] != type(self).__name__:
            raise InputError(f"state_dict: expected the state of the mask {type(self).__name__}, found {state['kind']}")

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Load what `state_dict` returned."""


class Norm(Mask):
    """Selects the parameters of normalization layers: e = rho * g_N / (|g_N| + gamma) there, 0 elsewhere.

    Args:
        model: its BatchNorm, InstanceNorm, LayerNorm, GroupNorm and RMSNorm layers are selected.

    Raises:
        InputError: the model has no such layer with parameters.

    Source: Mueller et al. 2023, "Normalization Layers Are All That Sharpness-Aware Minimization Needs"
    (arXiv 2306.04226), SAM-ON.
    """

    partial = True

    def __init__(self, model: nn.Module) -> None:
        kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
        layers = [m for m in model.modules() if isinstance(m, kinds)]
        self._chosen = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
        if not self._chosen:
            raise InputError("mask: expected a model with normalization layers that have parameters, found none")

    def selects(self, param: Tensor) -> bool:
        """Return True if the parameter belongs to a normalization layer."""
        return id(param) in self._chosen


class Layers(Mask):
    """Selects parameters by name: e = rho * g_L / (|g_L| + gamma) there, 0 elsewhere.

    Args:
        model: names the parameters.
        patterns: shell patterns of parameter names, for example "layer4.*" or "*.bias".

    Raises:
        InputError: a pattern matches no parameter.

    Source: the layer-wise comparison of Mueller et al. 2023 (arXiv 2306.04226).
    """

    partial = True

    def __init__(self, model: nn.Module, patterns: Sequence[str]) -> None:
        self._chosen: set[int] = set()
        for pattern in patterns:
            matched = {id(p) for name, p in model.named_parameters() if fnmatch.fnmatchcase(name, pattern)}
            if not matched:
                raise InputError(f"mask: expected a pattern that matches a parameter's name, found {pattern!r}")
            self._chosen |= matched

    def selects(self, param: Tensor) -> bool:
        """Return True if the parameter's name matches a pattern."""
        return id(param) in self._chosen


class _Sparse(Mask, ABC):
    """Base class of elementwise masks that are replaced every `refresh` ascents."""

    elementwise = True

    def __init__(self, density: float, refresh: int) -> None:
        if not 0 < density <= 1:
            raise InputError(f"mask: expected a density > 0 and <= 1, found {density!r}")
        if refresh < 1:
            raise InputError(f"mask: expected a refresh period of 1 ascent or more, found {refresh!r}")
        self.density, self.refresh = density, refresh
        self._ascents = 0
        self._masks: dict[int, Tensor] = {}  # by the parameter's id

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Make new masks every `refresh` ascents, and for parameters without a mask."""
        if self._ascents % self.refresh == 0:
            self._masks = {}
        new = [(p, g) for p, g in zip(params, grads, strict=True) if id(p) not in self._masks]
        if new:
            masks = self._make([g for _, g in new])
            self._masks.update((id(p), mask) for (p, _), mask in zip(new, masks, strict=True))
        self._ascents += 1

    def multiply_(self, params: Sequence[Tensor], direction: list[Tensor]) -> None:
        """Set the coordinates outside the current mask to 0, in place."""
        torch._foreach_mul_(direction, [self._masks[id(p)] for p in params])

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the number of ascents and the masks."""
        masks = {i: self._masks[id(p)].clone() for i, p in enumerate(params) if id(p) in self._masks}
        return {**super().state_dict(params), "ascents": self._ascents, "masks": masks}

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
        self._ascents = state["ascents"]
        self._masks = {id(params[i]): mask.to(params[i].device, copy=True) for i, mask in state["masks"].items()}

    @abstractmethod
    def _make(self, grads: list[Tensor]) -> list[Tensor]:
        """Return one boolean mask per gradient."""


class Random(_Sparse):
    """Selects random coordinates: e = rho * m g / (|g| + gamma), m ~ Bernoulli(density).

    Args:
        density: probability that a coordinate moves, > 0 and <= 1. Default 0.5.
        refresh: ascents between two draws, >= 1. Default 100.
        seed: seed of the draws. Default 0.

    Source: Mi et al. 2022, "Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach"
    (arXiv 2210.05177), random mask. It is also ESAM's weight perturbation (Du et al. 2021, arXiv 2110.03141), but with
    scale 1 in place of 1/density.
    """

    def __init__(self, density: float = 0.5, refresh: int = 100, seed: int = 0) -> None:
        super().__init__(density, refresh)
        self.seed = seed

    def _make(self, grads: list[Tensor]) -> list[Tensor]:
        # A new seed per draw: unlike a generator it has no state to save.
        seed = self.seed * 1_000_003 + self._ascents
        generators = {device: torch.Generator(device).manual_seed(seed) for device in {g.device for g in grads}}
        draws = [torch.rand(g.shape, generator=generators[g.device], device=g.device) for g in grads]
        return [draw < self.density for draw in draws]


class Fisher(_Sparse):
    """Selects the coordinates with the largest Fisher information: e = rho * m g / (|g| + gamma).

    The diagonal of the empirical Fisher information is estimated by g^2 of the mini-batch for which the mask is made.
    The coordinates of all parameters are ranked together.

    Args:
        density: share of the coordinates that move, > 0 and <= 1. Default 0.5.
        refresh: ascents between two masks, >= 1. Default 100.

    Source: Mi et al. 2022 (arXiv 2210.05177), algorithm 1, SSAM-F, with one mini-batch as the Fisher sample.
    """

    def __init__(self, density: float = 0.5, refresh: int = 100) -> None:
        super().__init__(density, refresh)

    def _make(self, grads: list[Tensor]) -> list[Tensor]:
        information = torch.cat([g.reshape(-1).abs().to(grads[0].device, torch.float64) for g in grads])
        count = max(1, round(self.density * information.numel()))
        top = torch.zeros_like(information, dtype=torch.bool)
        top[information.topk(count).indices] = True
        pieces = top.split([g.numel() for g in grads])
        return [piece.view(g.shape).to(g.device) for piece, g in zip(pieces, grads, strict=True)]


def resolve(mask: AnyMask) -> Mask:
    """Return the mask of a name; return a mask unchanged.

    Raises:
        InputError: the name is unknown, or its mask needs the model.
    """
    if isinstance(mask, Mask):
        return mask
    if mask in ("norm", "layers"):
        example = "Norm(model)" if mask == "norm" else 'Layers(model, ["layer4.*"])'
        raise InputError(f"mask: expected lsam_hpc.optim.masks.{example}, because it needs the model, found {mask!r}")
    classes = {"all": Mask, "random": Random, "fisher": Fisher}
    if mask not in classes:
        raise InputError(f"mask: expected all, norm, random, fisher, layers or a mask, found {mask!r}")
    return classes[mask]()
