"""SAM steps with control over single samples: which ones enter the second pass, and the weight of each in a pass."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim.sam import SAM

Losses: TypeAlias = Callable[[Tensor | None], Tensor]
Weighting: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor]]


class Selection(ABC):
    """Selects `max(1, round(fraction * n))` of the n samples of a mini-batch for the second pass.

    Args:
        fraction: share of the samples, > 0 and <= 1. With 1 the step is a SAM step.

    Raises:
        InputError: the fraction is out of range.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = _check_fraction("fraction", fraction)

    @abstractmethod
    def choose(self, before: Tensor, losses: Losses, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the selected samples and a factor for the weight of each; called with the parameters at x + e.

        Args:
            before: losses at x, shape (n,), detached.
            losses: computes losses at x + e.
            ids: dataset indices of the samples, shape (n,), or None.

        Returns:
            Indices into the mini-batch and factors, both of shape (m,) on the device of `before`.
        """

    def learn(self, ids: Tensor | None, chosen: Tensor, change: Tensor) -> None:
        """Record `change` = l(x + e) - l(x), shape (m,), of the selected samples, whose indices are `chosen`, (m,)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save for an exact resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""

    def _number_selected(self, n: int) -> int:
        return max(1, round(self.fraction * n))


class ESAM(Selection):
    """Selects the samples whose loss the ascent raises most: sharpness-sensitive data selection (SDS).

    B+ = {i in B: l_i(x + e) - l_i(x) > alpha}, with alpha such that |B+| = fraction * |B|; the step descends along
    grad 1/|B+| sum_{i in B+} l_i(x + e). The selection costs a forward pass of all samples at x + e, without a graph.
    ESAM's second technique, stochastic weight perturbation, is the random mask `lsam_hpc.optim.masks.Random`.

    Args:
        fraction: |B+| / |B|, > 0 and <= 1; gamma in the paper. Default 0.5.

    Raises:
        InputError: the fraction is out of range.

    Source: Du et al. 2021, "Efficient Sharpness-aware Minimization for Improved Training of Neural Networks"
    (arXiv 2110.03141), algorithm 1. The authors' code selects one sample fewer.
    """

    def __init__(self, fraction: float = 0.5) -> None:
        super().__init__(fraction)

    def choose(self, before: Tensor, losses: Losses, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return B+ and the factor |B| / |B+|."""
        n, count = len(before), self._number_selected(len(before))
        if count == n:
            chosen = torch.arange(n, device=before.device)
        else:
            with torch.no_grad():
                change = _check_losses(losses(None), n) - before
            chosen = change.topk(count).indices.sort().values
        return chosen, before.new_full((count,), n / count)


class AUSAM(Selection):
    """Draws samples by their average loss change in earlier steps; weights 1 / p_i make the gradient unbiased.

    DLP_i = |l_i(x + e) - l_i(x)| replaces the gradient norm of sample i, which would be the optimal probability.
    ADLP_i is its mean over the steps that selected i (for a new sample: the mean over the mini-batch's known samples).
    Of the n samples m = fraction * n are drawn, sample i with probability

        p_i = min(1, c q_i), sum p_i = m,  q_i = floor + (1 - floor) ADLP_i / mean(ADLP)

    and the step descends along grad 1/n sum_{i drawn} l_i(x + e) / p_i, whose mean over the draws is SAM's gradient.

    Args:
        fraction: m / n, > 0 and <= 1. Default 0.5.
        floor: uniform share of the probability, > 0 and <= 1; a sample's factor is at most 1 / (floor * fraction).
            Default 0.1.
        generator: generator of the draws, on the CPU. Default None: a new one with seed 0.

    Raises:
        InputError: an argument is out of range.

    Source: Deng et al. 2024, "Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization"
    (arXiv 2406.08001): the criterion, its estimate DLP, and ADLP. Not from the paper: the floor, the absolute value,
    systematic sampling (it draws exactly m samples with exactly the p_i), the weights 1 / p_i, and the first pass over
    all samples.
    """

    def __init__(self, fraction: float = 0.5, floor: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(fraction)
        self.floor = _check_fraction("floor", floor)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._sums = torch.zeros(0, dtype=torch.float64)  # sums of DLP, by dataset index
        self._visits = torch.zeros(0, dtype=torch.float64)

    def probabilities(self, ids: Tensor) -> Tensor:
        """Return the p_i of a mini-batch, shape (n,), in float64 on the CPU.

        Args:
            ids: dataset indices, shape (n,).
        """
        ids, n = self._with_room_for(ids), len(ids)
        seen = self._visits[ids] > 0
        average = self._sums[ids] / self._visits[ids]
        average = torch.where(seen, average, average[seen].mean() if bool(seen.any()) else 1.0)
        total = average.sum()
        relative = average * (n / total) if bool(total > 0) else torch.ones_like(average)
        q = self.floor + (1 - self.floor) * relative
        p = q * (self._number_selected(n) / q.sum())
        while bool((p > 1).any()):
            certain = p >= 1
            p = torch.where(certain, 1.0, q * ((self._number_selected(n) - certain.sum()) / q[~certain].sum()))
        return p

    def choose(self, before: Tensor, losses: Losses, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the drawn samples and 1 / p_i."""
        n = len(before)
        if ids is None or ids.shape != (n,) or ids.dtype not in (torch.int64, torch.int32) or bool((ids < 0).any()):
            text = "None" if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}: {ids.tolist()[:8]}"
            raise InputError(f"ids: expected {n} dataset indices >= 0 in a 1-D tensor, found {text}")
        p = self.probabilities(ids)
        order = torch.randperm(n, generator=self.generator)
        # Systematic sampling: intervals of length p_i, side by side, cover [0, m]; draw those with one of u, u + 1, ...
        edges = p[order].cumsum(0)
        edges[-1] = self._number_selected(n)
        ticks = (edges - torch.rand((), generator=self.generator, dtype=torch.float64)).ceil()
        chosen = order[ticks.diff(prepend=ticks.new_zeros(1)) > 0].sort().values
        return chosen.to(before.device), p[chosen].reciprocal().to(before)

    def learn(self, ids: Tensor | None, chosen: Tensor, change: Tensor) -> None:
        """Add to the averages; changes that are not finite are ignored."""
        assert ids is not None
        rows, change = self._with_room_for(ids)[chosen.cpu()], change.abs().cpu().double()
        finite = change.isfinite()
        self._sums.index_add_(0, rows[finite], change[finite])
        self._visits.index_add_(0, rows[finite], torch.ones_like(change[finite]))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts of the averages, and the generator's state."""
        return {"sums": self._sums.clone(), "visits": self._visits.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._sums, self._visits = state["sums"].clone(), state["visits"].clone()
        self.generator.set_state(state["generator"])

    def _with_room_for(self, ids: Tensor) -> Tensor:
        """Return the ids on the CPU, and extend the averages to them."""
        ids = ids.cpu().long()
        missing = int(ids.max()) + 1 - len(self._sums)
        if missing > 0:
            self._sums, self._visits = (functional.pad(t, (0, missing)) for t in (self._sums, self._visits))
        return ids


@torch.enable_grad()
def sample_step(
    opt: SAM,
    losses: Losses,
    *,
    ids: Tensor | None = None,
    selection: Selection | None = None,
    weighting: Weighting | None = None,
) -> Tensor:
    """Take a SAM step with selected and weighted samples; the parameters are at x again even if a pass fails.

    e is computed from grad sum_i ascent_i l_i(x); the step descends along grad sum_i clean_weight_i l_i(x) +
    grad sum_i perturbed_weight_i l_i(x + e), the second sum over the selected samples.

    Args:
        opt: the optimizer, with the ascent sam. Its gradients are cleared first.
        losses: called with None, returns the losses of all samples of the mini-batch, shape (n,); called with indices
            into the mini-batch, shape (m,), the losses of these. It must not call backward.
        ids: dataset indices of the samples, shape (n,), for selections that use earlier steps. Default None.
        selection: selects the samples of the second pass. Default None: all samples.
        weighting: called with the losses at x, shape (n,), detached; returns the weights ascent, clean_weight and
            perturbed_weight, shape (n,) each. A clean_weight of None or 0 saves a backward pass. Default None: the
            weights of SAM, (1/n, None, 1/n).

    Returns:
        The mean of the losses at x, a detached scalar.

    Raises:
        InputError: the losses, weights or ids have a wrong shape, or the ascent is another one.

    Source: Foret et al. 2021 (arXiv 2010.01412), algorithm 1; the weights are an extension.
    """
    if opt.ascent != "sam":
        raise InputError(f"opt: expected the ascent 'sam', found {opt.ascent!r}")
    opt.zero_grad()
    losses_at_x = _check_losses(losses(None))
    before = losses_at_x.detach()
    uniform = torch.full_like(before, 1 / len(before))
    step_weights = (uniform, None, uniform) if weighting is None else weighting(before)
    ascent, clean_weight, perturbed_weight = _check_weights(step_weights, before)
    clean = []
    if clean_weight is not None:
        (clean_weight * losses_at_x).sum().backward(retain_graph=True)
        clean = [(p, p.grad) for p in opt.parameters if p.grad is not None]
        opt.zero_grad()
    (ascent * losses_at_x).sum().backward()
    del losses_at_x
    opt.perturb()
    try:
        if selection is None:
            chosen, weights = None, perturbed_weight
        else:
            chosen, factors = selection.choose(before, losses, ids)
            weights = perturbed_weight[chosen] * factors
        perturbed_losses = _check_losses(losses(chosen), len(weights))
        (weights * perturbed_losses).sum().backward()
    finally:
        opt.restore()
    if selection is not None and chosen is not None:
        selection.learn(ids, chosen, perturbed_losses.detach() - before[chosen])
    pairs = [(p.grad, grad) for p, grad in clean if p.grad is not None]
    for p, grad in clean:
        if p.grad is None:
            p.grad = grad
    if pairs:
        torch._foreach_add_([perturbed_grad for perturbed_grad, _ in pairs], [clean_grad for _, clean_grad in pairs])
    opt.update()
    return before.mean()


def _check_fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= 1:
        raise InputError(f"{name}: expected a number > 0 and <= 1, found {value!r}")
    return float(value)


def _check_losses(losses: Tensor, length: int | None = None) -> Tensor:
    if losses.ndim != 1 or not len(losses) or length not in (None, len(losses)):
        expected = "one loss per sample" if length is None else f"{length} losses"
        raise InputError(f"losses: expected {expected} in a 1-D tensor, found shape {tuple(losses.shape)}")
    return losses


def _check_weights(weights: tuple[Tensor, Tensor | None, Tensor], like: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    for name, weight in zip(("ascent", "clean_weight", "perturbed_weight"), weights, strict=True):
        if weight is not None and weight.shape != like.shape:
            expected, shape = tuple(like.shape), tuple(weight.shape)
            raise InputError(f"weighting: expected weights of shape {expected}, found {name} of shape {shape}")
    ascent, clean_weight, perturbed_weight = weights
    clean_weight = clean_weight.detach().to(like) if clean_weight is not None and bool(clean_weight.any()) else None
    return ascent.detach().to(like), clean_weight, perturbed_weight.detach().to(like)
