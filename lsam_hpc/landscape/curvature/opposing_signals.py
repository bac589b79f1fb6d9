"""Outliers with opposing signals: the samples whose loss changes most between two states, and which ones pull apart.

A few samples with a strong feature can make most of a step's change of the loss: those on one side of the feature gain
what those on the other side lose. The outliers are the samples whose loss rises and falls most from one state to the
other. A rising and a falling one have opposing signals if their gradients point in opposite directions. Gradients are
those at the middle of the line between the states, where their product with the step is the change of the loss up to
the third order of the step.

Source: Rosenfeld and Risteski 2023, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network
Optimization" (arXiv 2311.04163). They group such samples by eye; the pairing by gradients is this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lsam_hpc.landscape.objective import Batch, Objective

COUNT = 8


@dataclass(frozen=True)
class Outliers:
    """Losses of all samples at two states, and the samples that change most.

    Args:
        before: loss of each sample at the first state, shape (n,).
        after: at the second state, shape (n,).
        rising: indices of the samples whose loss rises most, largest rise first; at most `count`.
        falling: indices of the samples whose loss falls most, largest fall first; at most `count`.
        norms: norm of the gradient of each rising and then each falling sample, at the middle.
        cosines: of the angle between the gradients of each rising and each falling sample, shape (rising, falling).
        pairs: (row, column) in `cosines` of samples with opposing gradients, each sample in one pair at most, the most
            opposed pair first.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    rising: NDArray[np.int64]
    falling: NDArray[np.int64]
    norms: NDArray[np.float64]
    cosines: NDArray[np.float64]
    pairs: list[tuple[int, int]]

    @property
    def change(self) -> NDArray[np.float64]:
        """Loss of each sample at the second state minus that at the first."""
        return self.after - self.before

    @property
    def share(self) -> float:
        """Share of the outliers in the sum of all samples' absolute changes; 0 if nothing changes."""
        sizes = np.abs(self.change)
        return float(sizes[np.r_[self.rising, self.falling]].sum() / max(float(sizes.sum()), 1e-300))


def outliers(
    objective: Objective, first: Tensor, second: Tensor, count: int = COUNT, advance: Callable[[], None] = lambda: None
) -> Outliers:
    """Return the samples whose loss changes most between two states, and the pairs with opposing gradients.

    Args:
        objective: f on fixed data; a sample's index is its place in the batches together.
        first: a state, shape (P,).
        second: a later one, shape (P,).
        count: largest number of rising and of falling samples; `count` gradients are in memory. Default: 8.
        advance: called after each batch at each state, and after each gradient.

    Raises:
        InputError: `count` is below 1, or a sample's loss is not finite.
    """
    if count < 1:
        raise InputError(f"count: expected 1 or more, found {count}")
    first, second = objective.vector(first), objective.vector(second)
    before, after = (_losses(objective, x, advance) for x in (first, second))
    change = after - before
    order = np.argsort(-change, kind="stable")
    rising = order[:count][change[order[:count]] > 0]
    order = np.argsort(change, kind="stable")
    falling = order[:count][change[order[:count]] < 0]
    norms, cosines = _angles(objective, (first + second) / 2, rising, falling, advance)
    return Outliers(before, after, rising, falling, norms, cosines, _pairs(cosines))


def sample(objective: Objective, index: int) -> Batch:
    """Return a batch with one sample, by its place in the batches together."""
    for inputs, targets in objective.batches:
        if index < len(targets):
            return inputs[index : index + 1], targets[index : index + 1]
        index -= len(targets)
    raise IndexError(index)


def _losses(objective: Objective, x: Tensor, advance: Callable[[], None]) -> NDArray[np.float64]:
    """Return the loss of each sample, shape (n,)."""
    import torch  # here, because figures of the losses do not need it

    values = []
    with torch.no_grad(), objective.at(x) as model:
        for inputs, targets in objective.batches:
            outputs = model(inputs)
            values += [objective.loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
            advance()
    losses = torch.stack(values).double().cpu().numpy()
    if wrong := np.flatnonzero(~np.isfinite(losses)).tolist():
        raise InputError(f"loss: expected a finite number for each sample, found {losses[wrong[0]]} for {wrong[0]}")
    return losses


def _angles(
    objective: Objective, x: Tensor, rising: NDArray[np.int64], falling: NDArray[np.int64], advance: Callable[[], None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the norms of the samples' gradients, and the cosines between those of rising and falling ones."""
    import torch

    norms, cosines = np.zeros(len(rising) + len(falling)), np.zeros((len(rising), len(falling)))
    with objective.at(x) as model, torch.enable_grad():

        def unit(at: int, index: int) -> Tensor:
            inputs, targets = sample(objective, index)
            loss = objective.loss(model(inputs), targets)
            grads = torch.autograd.grad(loss, objective.params, allow_unused=True, materialize_grads=True)
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            norms[at] = float(torch.linalg.vector_norm(flat))
            advance()
            return flat / max(float(norms[at]), 1e-300)

        up = [unit(i, int(index)) for i, index in enumerate(rising)]
        for j, index in enumerate(falling):
            down = unit(len(rising) + j, int(index))
            cosines[:, j] = [float(each @ down) for each in up]
    return norms, cosines


def _pairs(cosines: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return pairs of a row and a column with a negative cosine, from the smallest one, each row and column once."""
    pairs: list[tuple[int, int]] = []
    for place in np.argsort(cosines, axis=None, kind="stable").tolist():
        row, column = divmod(place, cosines.shape[1])
        if cosines[row, column] < 0 and all(row != i and column != j for i, j in pairs):
            pairs.append((row, column))
    return pairs
