"""ESAM's selection: the samples whose loss the ascent raises most."""

from __future__ import annotations

import torch
from torch import Tensor

from lsam_hpc.optim.samples.selection import Chosen, Losses, Selection, check_losses


class ESAM(Selection):
    """Selects the samples whose loss the ascent raises most: sharpness-sensitive data selection (SDS).

    B+ = {i in B: l_i(x + e) - l_i(x) > alpha}, with alpha such that |B+| = fraction * |B|; the step descends along
    grad 1/|B+| sum_{i in B+} l_i(x + e). The first pass is over all samples. The selection costs a forward pass of all
    samples at x + e, without a graph. ESAM's second technique, stochastic weight perturbation, is the
    mask `lsam_hpc.optim.masks.Tensors`.

    Args:
        fraction: |B+| / |B|, > 0 and <= 1; gamma in the paper. Default 0.5.

    Raises:
        InputError: the fraction is out of range.

    Source: Du et al. 2021, "Efficient Sharpness-aware Minimization for Improved Training of Neural Networks"
    (arXiv 2110.03141), algorithm 1. The authors' code selects one sample fewer.
    """

    def __init__(self, fraction: float = 0.5) -> None:
        super().__init__(fraction)

    def choose_second(self, before: Tensor, losses: Losses, ids: Tensor | None) -> Chosen | None:
        """Return B+ and the factor |B| / |B+|; None if B+ = B."""
        n, count = len(before), self.number_selected(len(before))
        if count == n:
            return None
        with torch.no_grad():
            change = check_losses(losses(None), n) - before
        return Chosen(change.topk(count).indices.sort().values, before.new_full((count,), n / count))
