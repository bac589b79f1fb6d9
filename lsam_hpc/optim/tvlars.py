"""TVLARS: LARS whose layer-wise rates fall along a sigmoid, in place of a warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import NOT_NEGATIVE, POSITIVE, Range


class TVLARS(Optimizer):
    """LARS with the layer-wise rate times a factor phi(t), which falls from at most 1 / alpha to 0, plus a floor.

    In step t = 1, 2, ... of the optimizer, for each parameter w of two or more dimensions with gradient g:

        phi(t) = 1 / (alpha + exp(lambda (t - delay))) + floor
        m <- momentum m + phi(t) trust_coefficient |w| / (|g| + weight_decay |w|) (g + weight_decay w)
        w <- w - lr m

    Where |w| or |g| + weight_decay |w| is 0, the whole rate is 1. Scalars and vectors take steps of SGD with momentum,
    without weight decay. The learning rate needs no warm-up. The gradients are not overwritten.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: >= 0 and < 1.
        weight_decay: of parameters of two or more dimensions.
        trust_coefficient: eta of LARS.
        lambda_: steepness of the fall, per step.
        delay: steps until the middle of the fall; with 0 it begins there.
        alpha: > 0; 1 / alpha is the limit of phi before the fall.
        floor: limit of phi after the fall: the steps become those of LARS with floor * trust_coefficient.

    Raises:
        InputError: an argument is out of its range.

    Source: Do et al. 2023, "Revisiting LARS for Large Batch Training Generalization of Neural Networks"
    (arXiv 2309.14053), phi only. The authors' code has alpha = 0.1, no floor, phi = 1 for ten epochs in place of the
    delay in the exponent, |g + weight_decay w| in the rate, and norms limited to 10. The rate, the momentum and the
    parameters left out are those of LARS, You et al. 2017 (arXiv 1708.03888).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        lambda_: float = 1e-3,
        delay: float = 0.0,
        alpha: float = 1.0,
        floor: float = 0.0,
    ) -> None:
        defaults = {
            "lr": (lr, NOT_NEGATIVE),
            "momentum": (momentum, Range(least=0, below=1)),
            "weight_decay": (weight_decay, NOT_NEGATIVE),
            "trust_coefficient": (trust_coefficient, NOT_NEGATIVE),
            "lambda_": (lambda_, NOT_NEGATIVE),
            "delay": (delay, NOT_NEGATIVE),
            "alpha": (alpha, POSITIVE),
            "floor": (floor, NOT_NEGATIVE),
        }
        for name, (value, limits) in defaults.items():
            if value not in limits:
                raise InputError(f"{name}: expected {limits}, found {value!r}")
        super().__init__(params, {name: value for name, (value, _) in defaults.items()} | {"step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Take one step; return what the closure returns, None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            rate = group["trust_coefficient"] * phi(
                group["step"], group["lambda_"], group["delay"], group["alpha"], group["floor"]
            )
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self._momentum(p, group["momentum"])
                    buffer.add_(p.grad if p.ndim < 2 else _scaled(p, p.grad, rate, group["weight_decay"]))
                    p.add_(buffer, alpha=-group["lr"])
        return loss

    def _momentum(self, param: Tensor, momentum: float) -> Tensor:
        """Return the parameter's momentum buffer times the momentum; zeros in the first step."""
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum_buffer"]
        return buffer.mul_(momentum)


def phi(step: float, lambda_: float, delay: float, alpha: float, floor: float) -> float:
    """Return 1 / (alpha + exp(lambda (step - delay))) + floor; the arguments as of `TVLARS`."""
    exponent = lambda_ * (step - delay)
    if exponent <= 0:
        return 1 / (alpha + math.exp(exponent)) + floor
    small = math.exp(-exponent)  # exp(exponent) would overflow late in a long run
    return small / (alpha * small + 1) + floor


def _scaled(param: Tensor, grad: Tensor, rate: float, weight_decay: float) -> Tensor:
    """Return g + weight_decay w times rate |w| / (|g| + weight_decay |w|)."""
    norm = torch.linalg.vector_norm(param)
    total = torch.linalg.vector_norm(grad) + weight_decay * norm
    ratio = torch.where((norm > 0) & (total > 0), rate * norm / total, 1.0)
    return grad.add(param, alpha=weight_decay).mul_(ratio)
