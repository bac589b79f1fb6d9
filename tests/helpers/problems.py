"""Small training problems for the optimizers' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import TensorDataset


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Return a two-layer perceptron from 6 inputs to 3 classes, the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mini-batches of 16 for `network`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(16, 6, generator=generator, dtype=dtype), torch.randint(0, 3, (16,), generator=generator)


def samples(count: int = 40) -> TensorDataset:
    """Return a data set of single samples for `network`, always the same."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 3, (count,), generator=generator))


def closure_of(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return the closure of one mini-batch."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def step_on(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, scaler: GradScaler | None = None) -> Tensor:
    """Take a step with a closure that takes the mini-batch, and return its loss."""

    def closure(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return optimizer.step(closure, scaler, batch=(x, y))


def ascent_vector(g: Tensor, rho: float, gamma: float) -> Tensor:
    """Return e = rho * g / (|g| + gamma) of the l2 metric."""
    return rho * g / (g.norm() + gamma)


class Bowl(nn.Module):
    """f(x) = a/2 |x - b|^2, whose gradient is a (x - b) exactly.

    Args:
        start: x, a sequence of numbers.
        a: curvature. Default 1.
        b: the minimum. Default 0.
        dtype: of x. Default float64.
    """

    def __init__(self, start: object, a: float = 1.0, b: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=dtype))
        self.a, self.b = a, b

    def closure(self, optimizer: Optimizer) -> Callable[[], Tensor]:
        """Return the closure of a step."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.a / 2 * ((self.x - self.b) ** 2).sum()
            loss.backward()
            return loss

        return closure

    @property
    def value(self) -> np.ndarray:
        """A copy of x."""
        return self.x.detach().numpy().copy()


def flat(model: nn.Module) -> Tensor:
    """Return a copy of the parameters as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def gradient(model: nn.Module, at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the mini-batch loss at a vector of parameters, by torch.func.functional_call."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    pieces = at.detach().split([s.numel() for s in shapes.values()])
    params = {n: v.view(s).requires_grad_() for (n, s), v in zip(shapes.items(), pieces, strict=True)}
    loss = functional.cross_entropy(torch.func.functional_call(model, params, (x,)), y)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(params.values()))])
