"""The largest eigenvalue of the Hessian of a model that is being trained, followed from one measurement to the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim.accelerators import fork_rng
from lsam_hpc.optim.batchnorm import preserve_module_state, recalibrate
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.operators import Batch, Loss, Operator, differentiated_twice

TOLERANCE = 0.01  # residual / eigenvalue that ends a measurement; the eigenvalue's error is quadratic in it
LEAST = 4  # products of a measurement: with fewer, a second eigenvalue that overtook the first would be missed
ROUND = 10  # products until Lanczos restarts, which bounds the vectors in memory
MOST = 50  # products of a measurement
WEIGHTS = (1.0, 0.5, 0.25)  # of the leading eigenvectors in the vector that the next measurement starts from


class Measurement(NamedTuple):
    """The result of a measurement.

    Args:
        eigenvalue: estimate of the largest eigenvalue, from below.
        residual: |H v - eigenvalue v| for the estimate v of its eigenvector, |v| = 1: some eigenvalue of H is at most
            this far from the estimate.
        products: number of products with the Hessian.
    """

    eigenvalue: float
    residual: float
    products: int


class TopEigenvalue:
    """Measures the largest Hessian eigenvalue of a model's mean loss over fixed batches, at its present parameters.

    By Lanczos from the last measurement's eigenvectors, so that few products are needed while the parameters change
    little. The model is in eval mode, with BatchNorm's statistics computed from the batches. A measurement changes
    neither parameters, gradients, buffers, modes nor torch's random numbers. It keeps up to 11 vectors of the
    parameters' size while it runs, and one between measurements.

        sharpness = TopEigenvalue(model, [(images, labels)])
        for step, batch in enumerate(loader):
            opt.step(closure)
            if step % 100 == 0:
                print(step, sharpness.measure().eigenvalue)

    Args:
        model: its trainable parameters are those of the Hessian.
        batches: pairs (inputs, targets) on the model's device.
        loss: function of outputs and targets that returns a batch's mean loss. Default: cross-entropy.
        seed: of the vector that the first measurement starts from. Default 0.

    Raises:
        InputError: there are no samples, or no trainable parameters.

    Source: Lanczos 1950; Parlett 1998, "The Symmetric Eigenvalue Problem", theorem 4.5.1, for the residual.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], loss: Loss = functional.cross_entropy, seed: int = 0
    ) -> None:
        self.batches, self.loss = list(batches), loss
        self.samples = sum(len(targets) for _, targets in self.batches)
        self._model, self._seed = model, seed
        self._params = [p for p in model.parameters() if p.requires_grad]
        if not self.samples or not self._params:
            raise InputError(
                f"curvature: expected samples and trainable parameters, found {self.samples} and {len(self._params)}"
            )
        flat = FlatVector(self._params)
        self.dtype, self.device = flat.vector.dtype, flat.vector.device
        self._start: Tensor | None = None

    def measure(self) -> Measurement:
        """Return the largest eigenvalue at the model's present parameters.

        Raises:
            InputError: a product is not finite, or a layer's derivative cannot be differentiated.
        """
        recurs = any(isinstance(module, nn.RNNBase) for module in self._model.modules())
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurs else nullcontext()
        with fork_rng(self.device), preserve_module_state(self._model), cudnn, differentiated_twice():
            self._model.eval()
            recalibrate(self._model, (inputs for inputs, _ in self.batches))
            return self._follow(Operator(self, self._model, "hessian", self._params))

    def state_dict(self) -> dict[str, Any]:
        """Return the vector that the next measurement starts from; None before the first."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as after the measurement before `state_dict` was called."""
        start = state["start"]
        self._start = None if start is None else start.to(self.device, self.dtype)

    def _follow(self, operator: Operator) -> Measurement:
        """Iterate until the residual is small; keep the leading eigenvectors for the next measurement."""
        size = operator.shape[0]
        if self._start is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._start = torch.randn(size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        products = 0
        while True:
            result = self._lanczos(operator, min(ROUND, size, MOST - products))
            products += result.products
            if result.residual <= TOLERANCE * abs(result.eigenvalue) or products >= MOST:
                return result._replace(products=products)

    def _lanczos(self, operator: Operator, most: int) -> Measurement:
        """Take at most `most` steps from the start vector, and replace it by the leading eigenvectors."""
        assert self._start is not None
        v = self._start / torch.linalg.vector_norm(self._start)
        basis, diagonal, beside = [v], list[float](), list[float]()
        while True:
            w = operator @ v
            diagonal.append(float(v @ w))
            for _ in range(2):  # once more, for what rounding left
                for u in basis:
                    w.sub_(u, alpha=float(u @ w))
            beta = float(torch.linalg.vector_norm(w))
            if not np.isfinite(diagonal[-1] + beta):
                raise InputError("curvature: expected finite products with the Hessian, found infinity or NaN")
            values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
            residual, count = beta * abs(vectors[-1, -1]), len(diagonal)
            scale = float(np.abs(values).max())
            exact = beta <= torch.finfo(self.dtype).eps * scale  # the vectors span an invariant space
            small = count >= LEAST and residual <= TOLERANCE * abs(values[-1])
            if count >= most or exact or small:
                break
            beside.append(beta)
            v = w / beta
            basis.append(v)
        leading = vectors[:, ::-1][:, : len(WEIGHTS)]
        mixed = leading @ np.array(WEIGHTS[: leading.shape[1]])
        self._start = sum((float(c) * u for c, u in zip(mixed, basis, strict=True)), torch.zeros_like(v))
        return Measurement(float(values[-1]), float(residual), count)
