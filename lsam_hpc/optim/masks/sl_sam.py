"""SL-SAM: ascent and descent of a step move some of the layers only, which a bandit chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.optim.flat import widest_dtype
from lsam_hpc.optim.masks.base import DENSITY, Mask, check_density, generator_of
from lsam_hpc.optim.masks.tensors import switch


class SLSAM(Mask):
    """Selects k layers per step: e = rho * g_S / (|g_S| + gamma) there, and only these layers are updated.

    Each layer has a weight w. A step selects layer i of K with probability

        p_i = k ((1 - exploration) w_i / sum w + exploration / K)

    and afterwards w_i *= exp(k exploration / K * reward_i / p_i) for the selected layers. The reward is the norm of the
    layer's gradient at x + e, divided by the largest one so far of any layer. While a p_i would exceed 1, the weights
    above a limit count as the limit, p_i = 1 for them, and they are not changed. For k = 1 this is EXP3.

    The base optimizer skips the layers that are not selected: no weight decay, no momentum. `step(closure)` does not
    compute their gradients; in phases use `SAM.masked`. It needs the ascent sam, because earlier gradients are those
    of other layers. All ranks that share a gradient must have the same seed. DistributedDataParallel needs
    `find_unused_parameters=True`.

    Args:
        model: a layer is a module with parameters of its own that are not frozen. Other parameters are always selected.
        density: k / K, > 0 and <= 1. Default 0.5.
        exploration: gamma of EXP3, > 0 and <= 1. Default 0.1.
        seed: seed of the draws. Default 0.

    Raises:
        InputError: an argument is out of range, or the model has no such parameters.

    Source: Cheng et al. 2026, "Sparse Layer Sharpness-Aware Minimization for Efficient Fine-Tuning" (arXiv 2602.09395):
    a bandit selects the layers of ascent and descent by an EXP3-based rule of their gradient norms. The rule's details
    are not known to us; not from there: EXP3 of Auer et al. 2002, "The Nonstochastic Multiarmed Bandit Problem" (SIAM
    J. Comput. 32), its extension to k arms, EXP3.M, of Uchiya et al. 2010, "Algorithms for Adversarial Bandit Problems
    with Multiple Plays" (ALT 2010, algorithm 2), systematic sampling for its draw, and the reward's scale.
    """

    partial = True
    in_steps = True
    sam_only = True
    selected: list[int]  # the layers of this step, in the order of the model's modules
    probabilities: Tensor  # p of this step, shape (K,), float64

    def __init__(self, model: nn.Module, density: float = DENSITY, *, exploration: float = 0.1, seed: int = 0) -> None:
        self.density, self.seed = check_density(density), seed
        if not 0 < exploration <= 1:
            raise InputError(f"mask: expected an exploration > 0 and <= 1, found {exploration!r}")
        self.exploration = exploration
        self._layer: dict[Tensor, int] = {}  # a parameter -> its layer
        layers = 0
        for module in model.modules():
            new = {p for p in module.parameters(recurse=False) if p.requires_grad} - self._layer.keys()
            self._layer |= dict.fromkeys(new, layers)
            layers += bool(new)
        if not layers:
            raise InputError("mask: expected a model with parameters that are not frozen, found none")
        self.count = max(1, round(density * layers))  # k
        self._logs = torch.zeros(layers, dtype=torch.float64)  # log w
        self._largest = 0.0  # norm of a layer's gradient
        self._steps = 0
        self._off: list[Tensor] = []  # parameters whose requires_grad is switched off
        self._draw()

    def selects(self, param: Tensor) -> bool:
        """Return True if the parameter's layer takes part in this step."""
        layer = self._layer.get(param)
        return layer is None or layer in self.selected

    def begin_passes(self, params: Sequence[Tensor], *, ascent_only: bool) -> None:
        """Switch off the gradients of the layers that are not selected."""
        self._off = [p for p in params if p.requires_grad and not self.selects(p)]
        switch(self._off, on=False)

    def end_passes(self) -> None:
        """Restore `requires_grad`."""
        switch(self._off, on=True)
        self._off = []

    def before_descent(self, params: Sequence[Tensor]) -> None:
        """Clear the gradients of the layers that are not selected, and update the weights of the others."""
        layers, grads = [], []
        for p in params:
            if not self.selects(p):
                p.grad = None
            elif p.grad is not None and p in self._layer:
                layers.append(self._layer[p])
                grads.append(p.grad)
        if not grads:
            return
        norms = torch.stack([n.to(grads[0].device) for n in torch._foreach_norm(grads, 2, widest_dtype(grads))])
        squares = torch.zeros_like(self._logs).index_add_(0, torch.tensor(layers), norms.cpu().double().square())
        rewards = squares.nan_to_num(0, 0, 0).sqrt()
        self._largest = max(self._largest, rewards.max().item())
        if self._largest > 0:
            changed = torch.zeros_like(self._capped)
            changed[self.selected] = True
            changed &= ~self._capped
            estimates = rewards / self._largest / self.probabilities
            self._logs += torch.where(changed, self.count * self.exploration / len(self._logs) * estimates, 0)

    def end_step(self, params: Sequence[Tensor]) -> None:
        """Draw the layers of the next step."""
        self._steps += 1
        self._draw()

    def _draw(self) -> None:
        self.probabilities, self._capped = probabilities(self._logs, self.count, self.exploration)
        generator = generator_of(self.seed, self._steps)
        order = torch.randperm(len(self._logs), generator=generator)
        # Systematic sampling: intervals of length p_i, side by side, cover [0, k]; draw those with one of u, u + 1, ...
        edges = self.probabilities[order].cumsum(0)
        edges[-1] = self.count
        ticks = (edges - torch.rand((), generator=generator, dtype=torch.float64)).ceil()
        drawn = order[ticks.diff(prepend=ticks.new_zeros(1)) > 0]
        self.selected = sorted(drawn.tolist())

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the weights and the number of steps, which determine the draw."""
        state = {"logs": self._logs.clone(), "largest": self._largest, "steps": self._steps}
        return {**super().state_dict(params), **state}

    def check(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Raise InputError if a state was not saved by a mask of this kind for as many layers."""
        super().check(state, params)
        if (layers := len(state["logs"])) != len(self._logs):
            raise InputError(f"state_dict: expected the weights of {len(self._logs)} layers, found {layers}")

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._logs, self._largest, self._steps = state["logs"].clone(), state["largest"], state["steps"]
        self._draw()


def probabilities(logs: Tensor, k: int, exploration: float) -> tuple[Tensor, Tensor]:
    """Return the probability of each arm, the sum of which is k, and whether its weight was above the limit.

    Args:
        logs: logarithms of the weights, shape (K,), float64.
        k: number of arms to draw, 1 to K.
        exploration: gamma of EXP3.M, > 0 and <= 1.
    """
    arms = len(logs)
    capped = torch.zeros(arms, dtype=torch.bool)
    if k == arms:
        return torch.ones_like(logs), ~capped
    # Relative to the k-th largest, which is below the limit; the exponent of one above it is bounded.
    weights = (logs - logs.topk(k).values[-1]).clamp_max(700).exp()
    if exploration < 1:
        share = (1 / k - exploration / arms) / (1 - exploration)  # of the sum, at which p_i is 1
        ordered = weights.sort(descending=True).values.tolist()
        limit, above = share * sum(ordered), 0
        while ordered[above] >= limit:
            above += 1
            limit = share * sum(ordered[above:]) / (1 - above * share)
        if above:
            capped = weights >= limit
            weights = weights.clamp_max(limit)
    p = k * ((1 - exploration) * weights / weights.sum() + exploration / arms)
    return torch.where(capped, 1.0, p), capped
