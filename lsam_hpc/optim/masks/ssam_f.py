"""SSAM-F: the ascent moves the coordinates with the largest Fisher information of single samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from lsam_hpc.errors import InputError
from lsam_hpc.optim.accelerators import fork_rng
from lsam_hpc.optim.batchnorm import preserve_module_state
from lsam_hpc.optim.masks.base import DENSITY, REFRESH_SSAM, Sparse, generator_of, largest
from lsam_hpc.options.ascent import parse_pattern


class Samples(Protocol):
    """A data set of single samples, such as `torch.utils.data.TensorDataset(x, y)`."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        """Return the input and the target of a sample, without a batch dimension."""


class SSAMF(Sparse):
    """Selects the coordinates with the largest Fisher information: e = rho * m g / (|g| + gamma).

    The Fisher information of a coordinate is estimated by the sum of g_i^2 over random samples, g_i being the gradient
    of the loss of sample i alone. m = 1 for the int(density * n) largest of the n coordinates of all parameters. The
    mask is made after the first step and every `refresh` steps later, at `samples` forward and backward passes of one
    sample each. In the first step e = 0.

    With the pattern "N:M", m = 1 for the N largest of every M coordinates in a row, of each parameter by itself: in a
    matrix along its rows, in a convolution's weight, shape (outputs, inputs, height, width), along its outputs. Other
    parameters are dense. `density` is not used then.

    The passes over single samples run in training mode, as in the authors' code. They leave gradients, buffers, modes
    and torch's random state as they were.

    Args:
        model: the module that is trained.
        data: samples of the training set; `data[i]` is an input and a target.
        loss: called with the outputs and targets of a mini-batch of one sample. Default: cross entropy.
        density: share of the coordinates that move, > 0 and <= 1. Default 0.5.
        refresh: steps between two masks, >= 1. Default 1000; the paper's is 5 epochs.
        samples: number of samples per mask, at most all are used. Default 1024.
        pattern: "none" or "N:M". Default "none".
        seed: seed of the choice of samples, and of the model's random numbers in these passes. Default 0.

    Raises:
        InputError: an argument is out of range, or the model does not take a single sample in training mode.

    Source: Mi et al. 2022 (arXiv 2210.05177), algorithm 1, SSAM-F; N:M: Mi et al. 2023, "Systematic Investigation of
    Sparse Perturbed Sharpness-Aware Minimization Optimizer" (arXiv 2306.17504). For convolutions the authors' N:M code
    reads the mask, made for the transposed weight, in the order of the weight, so that the mask of a coordinate is that
    of another one; here each coordinate has its own.
    """

    in_steps = True

    def __init__(
        self,
        model: nn.Module,
        data: Samples,
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        *,
        density: float = DENSITY,
        refresh: int = REFRESH_SSAM,
        samples: int = 1024,
        pattern: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__(density, refresh)
        if samples < 1 or not len(data):
            raise InputError(f"mask: expected 1 sample or more, found samples={samples!r} of {len(data)}")
        self.samples, self.seed = samples, seed
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._data, self._loss = data, loss
        self._pattern = parse_pattern(pattern)
        params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        if self._pattern is not None:
            check_shapes(params, self._pattern[1])
        try:
            self._squares(params, [0])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"mask: expected a model in training mode and a loss that take one sample, found: {reason}"
            ) from error

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Make masks of 0 for parameters without a mask."""
        self._masks.update((p, torch.zeros_like(p, dtype=torch.bool)) for p in params if p not in self._masks)

    def end_step(self, params: Sequence[Tensor]) -> None:
        """Make new masks after the first step, and every `refresh` steps later."""
        if self._count % self.refresh == 0:
            trained = [p for p in params if p.requires_grad]
            masks = self.make(trained)
            self._masks = dict(zip(trained, masks, strict=True))
        self._count += 1

    def make(self, params: list[Tensor]) -> list[Tensor]:
        """Return the masks of the parameters, by the squared gradients of new samples."""
        order = torch.randperm(len(self._data), generator=generator_of(self.seed, self._count))
        squares = self._squares(params, order[: self.samples].tolist())
        if self._pattern is not None:
            return [in_pattern(square, *self._pattern) for square in squares]
        return largest(squares, max(1, int(self.density * sum(p.numel() for p in params))))

    @torch.enable_grad()
    def _squares(self, params: list[Tensor], indices: list[int]) -> list[Tensor]:
        """Return the sum of the squared gradients of single samples, a tensor per parameter."""
        squares = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params]
        device = params[0].device
        with preserve_module_state(self._model), fork_rng(device):
            torch.manual_seed(self.seed * 1_000_003 + self._count)
            self._model.train()
            for index in indices:
                x, y = default_collate([self._data[index]])
                loss = self._loss(self._model(x.to(device)), y.to(device))
                grads = torch.autograd.grad(loss, params, allow_unused=True)
                for square, grad in zip(squares, grads, strict=True):
                    if grad is not None:
                        square.addcmul_(grad, grad)
        return squares


def check_shapes(params: Sequence[Tensor], m: int) -> None:
    """Raise InputError if the coordinates of a matrix or of a convolution's weight are not groups of m."""
    for p in params:
        if p.ndim in (2, 4) and p.numel() % m:
            raise InputError(f"mask: expected parameters of a multiple of {m} elements, found shape {tuple(p.shape)}")


def in_pattern(scores: Tensor, n: int, m: int) -> Tensor:
    """Return a boolean mask of the n largest of every m scores, see `SSAMF`."""
    if scores.ndim not in (2, 4):
        return torch.ones_like(scores, dtype=torch.bool)
    # A convolution's weight is grouped with the outputs as its last dimension.
    rows = scores.flatten(1).t() if scores.ndim == 4 else scores
    groups = rows.reshape(-1, m)
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(1, groups.argsort(1)[:, : m - n], False)  # noqa: FBT003
    mask = mask.view(rows.shape)
    return mask.t().reshape(scores.shape) if scores.ndim == 4 else mask
