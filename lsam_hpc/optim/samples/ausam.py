"""AUSAM's selection: random samples for both passes, with probabilities from the loss changes of earlier steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim.samples.selection import Chosen, Selection, check_fraction


class AUSAM(Selection):
    """Draws the samples of both passes by their average loss change in earlier steps, with weights 1 / p_i.

    DLP_i = |l_i(x + e) - l_i(x)| replaces the gradient norm of sample i, which would be the optimal probability.
    ADLP_i is its mean over the steps that drew i (for a new sample: the mean over the mini-batch's known samples).
    Before the first pass m = fraction * n of the n samples are drawn, sample i with probability

        p_i = min(1, c q_i), sum p_i = m,  q_i = floor + (1 - floor) ADLP_i / mean(ADLP)

    and both passes are over these m samples S, with the same weights:

        g = grad 1/n sum_{i in S} l_i(x) / p_i,  e = e(g),  and the step descends along
        grad 1/n sum_{i in S} l_i(x + e) / p_i.

    The mean of g over the draws is the gradient over all n samples, and so is that of the second gradient at a given
    x + e. e itself depends on the draw, so the step is unbiased up to the spread of e only.

    Args:
        fraction: m / n, > 0 and <= 1. Default 0.5: a step costs about half of SAM's, as one of the base optimizer.
        floor: uniform share of the probability, > 0 and <= 1; a sample's factor is at most 1 / (floor * fraction).
            Default 0.1.
        generator: generator of the draws, on the CPU. Default None: a new one with seed 0.

    Raises:
        InputError: an argument is out of range.

    Source: Deng et al. 2024, "Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization"
    (arXiv 2406.08001): sampling a part of the mini-batch before both passes, the gradient norm as its criterion, the
    estimate DLP, and its average ADLP. The text was available in part and the code was not found; from this project
    are the floor, the absolute value, the estimate for a new sample, systematic sampling (it draws exactly m samples
    with exactly the p_i), and the form 1 / p_i of the weights.
    """

    def __init__(self, fraction: float = 0.5, floor: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(fraction)
        self.floor = check_fraction("floor", floor)
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
        p = q * (self.number_selected(n) / q.sum())
        while bool((p > 1).any()):
            certain = p >= 1
            p = torch.where(certain, 1.0, q * ((self.number_selected(n) - certain.sum()) / q[~certain].sum()))
        return p

    def choose_first(self, ids: Tensor | None) -> Chosen:
        """Return the drawn samples and 1 / p_i."""
        if ids is None or ids.ndim != 1 or not len(ids) or ids.dtype not in (torch.int64, torch.int32):
            text = "None" if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
            raise InputError(f"ids: expected the dataset indices of all samples in a 1-D integer tensor, found {text}")
        if bool((ids < 0).any()):
            raise InputError(f"ids: expected dataset indices >= 0, found {int(ids.min())}")
        n, p = len(ids), self.probabilities(ids)
        order = torch.randperm(n, generator=self.generator)
        # Systematic sampling: intervals of length p_i, side by side, cover [0, m]; draw those with one of u, u + 1, ...
        edges = p[order].cumsum(0)
        edges[-1] = self.number_selected(n)
        ticks = (edges - torch.rand((), generator=self.generator, dtype=torch.float64)).ceil()
        drawn = order[ticks.diff(prepend=ticks.new_zeros(1)) > 0].sort().values
        return Chosen(drawn.to(ids.device), p[drawn].reciprocal().to(ids.device))

    def learn(self, ids: Tensor | None, samples: Tensor, change: Tensor) -> None:
        """Add to the averages; changes that are not finite are ignored."""
        assert ids is not None
        rows, change = self._with_room_for(ids)[samples.cpu()], change.abs().cpu().double()
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
