"""ConAdv: adversarial inputs, made one step ahead with the parameters of that time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim.batchnorm import FrozenBatchNormStats
from lsam_hpc.optim.samples.batchnorm import adversarial_statistics
from lsam_hpc.options.option import NOT_NEGATIVE

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Limit: TypeAlias = Tensor | float | None


class ConAdv(Iterator[tuple[Tensor, Tensor, Tensor]]):
    """Yields mini-batches (x, y, x_adv): concurrent adversarial learning.

    For the mini-batch of step t, x_adv = clip(x + epsilon sign(grad_x l(theta_{t-1}; x, y))): when a mini-batch is
    taken, the adversarial inputs of the next one are computed, with the parameters before the step. They do not depend
    on the step and could be computed at the same time; here the caller of `next` computes them. The step descends along
    the gradient of `conadv_loss`, which normalizes adversarial inputs by statistics of their own if `split_batchnorm`
    was called. In SAM both passes see the same x_adv.

    The pass for x_adv changes neither the parameters' gradients nor any BatchNorm statistics. The first mini-batch has
    no earlier parameters: its x_adv is computed with the present ones.

    Args:
        batches: mini-batches (x, y), x of shape (n, ...), floating point.
        model: in the mode of training; without the wrapper of DistributedDataParallel, which would wait for gradients.
        epsilon: largest change of an input value, in the units of x, >= 0.
        low: smallest input value, a number or a tensor that broadcasts with x. Default None: no limit.
        high: largest input value, likewise.
        loss: function of outputs and targets. Default: cross-entropy.

    Raises:
        InputError: epsilon is out of range.

    Source: Liu et al. 2021, "Concurrent Adversarial Learning for Large-Batch Training" (arXiv 2106.00221), with one
    step of the sign of the gradient and a delay of one. Their code also starts from random noise in 80 % of the steps
    and ascends toward a random wrong label; both are left out here, as the paper's formula has neither.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        model: nn.Module,
        epsilon: float,
        *,
        low: Limit = None,
        high: Limit = None,
        loss: Loss = functional.cross_entropy,
    ) -> None:
        if epsilon not in NOT_NEGATIVE:
            raise InputError(f"epsilon: expected {NOT_NEGATIVE}, found {epsilon!r}")
        self._batches, self._model, self._loss = iter(batches), model, loss
        self.epsilon, self._low, self._high = epsilon, low, high
        self._ahead: tuple[Tensor, Tensor, Tensor] | None = None  # the next mini-batch

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        present = self._ahead or self._attacked(next(self._batches))
        following = next(self._batches, None)
        self._ahead = None if following is None else self._attacked(following)
        return present

    def attack(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial inputs of a mini-batch at the present parameters, of the shape of x."""
        start = x.detach().requires_grad_()
        with torch.enable_grad(), adversarial_statistics(self._model), FrozenBatchNormStats(self._model):
            (slope,) = torch.autograd.grad(self._loss(self._model(start), y), start)
        moved = x.detach() + self.epsilon * slope.sign()
        for limit, bound in ((torch.maximum, self._low), (torch.minimum, self._high)):
            if bound is not None:
                moved = limit(moved, torch.as_tensor(bound).to(moved))
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Return the mini-batch that was made ahead: the parameters that its x_adv depends on are gone at a resume.

        The position in `batches`, which is behind that mini-batch, has to be saved with it.
        """
        return {"ahead": None if self._ahead is None else list(self._ahead)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        device = next(self._model.parameters()).device
        ahead = state["ahead"]
        self._ahead = None if ahead is None else tuple(t.to(device, copy=True) for t in ahead)

    def _attacked(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        return x, y, self.attack(x, y)


def conadv_loss(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, loss: Loss = functional.cross_entropy) -> Tensor:
    """Return the mean of the loss of clean and that of adversarial inputs.

    Args:
        model: with split BatchNorm layers, the adversarial inputs use and update their second set of statistics.
        x: clean inputs, shape (n, ...).
        y: targets, shape (n, ...).
        x_adv: adversarial inputs, of the shape of x.
        loss: function of outputs and targets. Default: cross-entropy.

    Source: Liu et al. 2021 (arXiv 2106.00221).
    """
    clean = loss(model(x), y)
    with adversarial_statistics(model):
        return (clean + loss(model(x_adv), y)) / 2
