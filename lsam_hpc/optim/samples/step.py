"""A SAM step with control over single samples: which ones enter a pass, and the weight of each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.errors import InputError
from lsam_hpc.optim.gradients import set_grads, take
from lsam_hpc.optim.random_state import repeating
from lsam_hpc.optim.sam import SAM
from lsam_hpc.optim.samples.selection import Chosen, Losses, Selection, check_losses

Weighting: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor]]


@torch.enable_grad()
def sample_step(
    opt: SAM,
    losses: Losses,
    *,
    ids: Tensor | None = None,
    selection: Selection | None = None,
    weighting: Weighting | None = None,
    scaler: GradScaler | None = None,
) -> Tensor:
    """Take a SAM step with selected and weighted samples; the parameters are at x again even if a pass fails.

    e is computed from grad sum_i ascent_i l_i(x); the step descends along grad sum_i clean_weight_i l_i(x) +
    grad sum_i perturbed_weight_i l_i(x + e), the sums over the samples that are selected for the pass.

    Args:
        opt: the optimizer, with the ascent sam. Its gradients are cleared first.
        losses: called with None, returns the losses of all n samples of the mini-batch, shape (n,); called with indices
            into the mini-batch, shape (m,), the losses of these. It must not call backward, nor scale the losses.
        ids: dataset indices of the samples, shape (n,), for selections that use earlier steps. Default None.
        selection: selects the samples. Default None: all samples in both passes.
        weighting: called with the losses at x, shape (n,), detached, NaN where the selection left a sample out of the
            first pass; returns the weights ascent, clean_weight and perturbed_weight, shape (n,) each. A clean_weight
            of None or 0 saves a backward pass. Default None: the weights of SAM, (1/n, None, 1/n).
        scaler: gradient scaler of mixed precision; the caller calls its `update` afterwards. After an overflow in
            either pass no step is taken; after one in the first pass the selection learns nothing.

    Returns:
        The mean of the losses at x, a detached scalar; with a selection before the first pass its estimate from the
        selected samples.

    Raises:
        InputError: the losses, weights or ids have a wrong shape, or the ascent is another one.

    Source: Foret et al. 2021 (arXiv 2010.01412), algorithm 1; the weights are an extension.
    """
    if opt.ascent != "sam":
        raise InputError(f"opt: expected the ascent 'sam', found {opt.ascent!r}")
    opt.zero_grad()
    # With a clean weight the gradients at x are used by the descent too: the mask must not leave any out.
    with opt.masked() if weighting is None else nullcontext():
        losses = repeating(losses) if opt.same_random_numbers else losses
        first = None if selection is None else selection.choose_first(ids)
        losses_at_x = _losses(losses, first)
        before = _of_all(losses_at_x.detach(), first, ids)
        uniform = torch.full_like(before, 1 / len(before))
        step_weights = (uniform, None, uniform) if weighting is None else weighting(before)
        ascent, clean_weight, perturbed_weight = _check_weights(step_weights, before)
        _backward(ascent, losses_at_x, first, scaler, retain_graph=clean_weight is not None)
        if clean_weight is not None:
            # After the ascent's: DistributedDataParallel averages over the ranks in the first backward pass of a graph
            # only. The second pass adds to the gradient left here, and averages the sum.
            along = take(opt.parameters)
            _backward(clean_weight, losses_at_x, first, scaler)
            clean = take(opt.parameters)
            set_grads(along)
        estimate = (losses_at_x.detach() * _selected(uniform, first)).sum()
        del losses_at_x
        opt.perturb(scaler)
        if clean_weight is not None:
            set_grads(clean)
        overflow = opt.overflow
        try:
            second = first
            if selection is not None and first is None:
                second = selection.choose_second(before, losses, ids)
            perturbed_losses = _losses(losses, second, len(before))
            _backward(perturbed_weight, perturbed_losses, second, scaler)
        finally:
            opt.restore()
    if selection is not None and not overflow:
        samples = torch.arange(len(before), device=before.device) if second is None else second.samples
        selection.learn(ids, samples, perturbed_losses.detach() - before[samples])
    opt.update(scaler)
    opt.observe(estimate)
    return estimate


def _losses(losses: Losses, chosen: Chosen | None, n: int | None = None) -> Tensor:
    samples, length = (None, n) if chosen is None else (chosen.samples, len(chosen.samples))
    return check_losses(losses(samples), length)


def _of_all(losses: Tensor, chosen: Chosen | None, ids: Tensor | None) -> Tensor:
    """Return the losses in a vector of the mini-batch's length, NaN for samples that were not chosen."""
    if chosen is None:
        return losses
    assert ids is not None  # without them no selection knows the mini-batch's length
    return losses.new_full((len(ids),), torch.nan).index_copy(0, chosen.samples.to(losses.device), losses)


def _selected(weights: Tensor, chosen: Chosen | None) -> Tensor:
    return weights if chosen is None else weights[chosen.samples] * chosen.factors.to(weights)


def _backward(
    weights: Tensor, losses: Tensor, chosen: Chosen | None, scaler: GradScaler | None, *, retain_graph: bool = False
) -> None:
    loss = (_selected(weights, chosen) * losses).sum()
    scaled = loss if scaler is None else scaler.scale(loss)
    scaled.backward(retain_graph=retain_graph)


def _check_weights(weights: tuple[Tensor, Tensor | None, Tensor], like: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    for name, weight in zip(("ascent", "clean_weight", "perturbed_weight"), weights, strict=True):
        if weight is not None and weight.shape != like.shape:
            expected, shape = tuple(like.shape), tuple(weight.shape)
            raise InputError(f"weighting: expected weights of shape {expected}, found {name} of shape {shape}")
    ascent, clean_weight, perturbed_weight = weights
    clean_weight = clean_weight.detach().to(like) if clean_weight is not None and bool(clean_weight.any()) else None
    return ascent.detach().to(like), clean_weight, perturbed_weight.detach().to(like)
