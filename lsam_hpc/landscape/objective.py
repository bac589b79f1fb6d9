"""A loss on fixed data as a function of the flat vector of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim.batchnorm import layers, preserve_module_state, recalibrate
from lsam_hpc.optim.flat import FlatVector

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
ROUNDING = 1e-5  # relative difference between two evaluations at one point that counts as rounding


class Value(NamedTuple):
    """The values of an objective at a point."""

    loss: float
    error: float  # classification error in %; NaN if targets are not classes


class Objective:
    """f(x): the mean loss of a model over fixed batches, with its gradient and classification error.

    The model is in eval mode. BatchNorm's statistics are recomputed from the batches at every point, because the
    statistics of one point are wrong at another. Every call restores the model and its buffers.

    Args:
        model: its trainable parameters are x, P in all, in the order of `model.parameters()`.
        batches: fixed pairs (inputs, targets).
        loss: function of outputs and targets that returns a batch's mean loss. Default: cross-entropy.
        batch_norm: `"recalibrate"` (default), or `"keep"` for the statistics that the model has.

    Attributes:
        recalibrates: whether the model has statistics that are recomputed.

    Raises:
        InputError: there are no data, or no trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: Loss = functional.cross_entropy,
        batch_norm: str = "recalibrate",
    ) -> None:
        self.model, self.batches, self.loss = model, list(batches), loss
        self.samples = sum(len(y) for _, y in self.batches)
        if not self.samples:
            raise InputError("data: expected at least one sample, found none")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise InputError("model: expected parameters that can be trained, found none")
        if batch_norm not in ("recalibrate", "keep"):
            raise InputError(f"batch_norm: expected recalibrate or keep, found {batch_norm!r}")
        self.params = [p for _, p in named]
        self.layout = [(name, tuple(p.shape)) for name, p in named]
        self.size = sum(p.numel() for p in self.params)
        self.recalibrates = batch_norm == "recalibrate" and bool(layers(model))
        # cuDNN's recurrent layers have no derivative in eval mode, and no second derivative in any.
        self._recurs = any(isinstance(module, nn.RNNBase) for module in model.modules())
        self._at = FlatVector(self.params)
        self._statistics = self.batches  # from which BatchNorm's statistics are recomputed

    def of_classes(self) -> dict[str, Objective]:
        """Return the mean loss over each class's samples, by the class's number, ascending.

        Their means, weighted by the numbers of samples, are f; so are those of their derivatives. BatchNorm's
        statistics are those of all samples.

        Raises:
            InputError: the targets are not classes.
        """
        targets = [y for _, y in self.batches]
        if any(y.ndim != 1 or y.is_floating_point() for y in targets):
            raise InputError(f"data: expected one class per sample as targets, found shape {tuple(targets[0].shape)}")
        parts = {}
        for name in sorted({int(value) for y in targets for value in y.unique()}):
            chosen = [(x[y == name], y[y == name]) for x, y in self.batches if bool((y == name).any())]
            part = Objective(self.model, chosen, self.loss, "recalibrate" if self.recalibrates else "keep")
            part._statistics = self._statistics
            parts[str(name)] = part
        return parts

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the flat vectors."""
        return self._at.vector.dtype

    @property
    def device(self) -> torch.device:
        """Device of the flat vectors."""
        return self._at.vector.device

    def start(self) -> Tensor:
        """Return a copy of the model's present parameters, shape (P,)."""
        return self._at.gather(self.params).clone()

    def vector(self, x: object) -> Tensor:
        """Return a point as a vector of this objective's type and device, shape (P,).

        Raises:
            InputError: its size differs from the model's.
        """
        flat = torch.as_tensor(x, dtype=self.dtype, device=self.device).reshape(-1)
        if flat.numel() != self.size:
            raise InputError(f"model: expected {flat.numel()} parameters, as in the state, found {self.size}")
        return flat

    @contextmanager
    def at(self, x: Tensor) -> Iterator[nn.Module]:
        """Set the model to a point, in eval mode, with BatchNorm's statistics for it; restore the model afterwards."""
        before = [p.detach().clone() for p in self.params]
        cudnn = torch.backends.cudnn.flags(enabled=False) if self._recurs else nullcontext()
        with preserve_module_state(self.model), cudnn:
            try:
                self.model.eval()
                self._at.vector.copy_(self.vector(x))
                self._at.scatter(self.params)
                if self.recalibrates:
                    recalibrate(self.model, (inputs for inputs, _ in self._statistics))
                yield self.model
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(list[Tensor](self.params), before)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Value:
        """Return the mean loss and the error at a point x of shape (P,)."""
        total, wrong, predicted = 0.0, 0, 0
        with self.at(x) as model:
            for inputs, targets in self.batches:
                outputs = model(inputs)
                total += float(self.loss(outputs, targets)) * len(targets)
                if _classes(outputs, targets):
                    wrong += int((outputs.argmax(1) != targets).sum())
                    predicted += targets.numel()
        return Value(total / self.samples, 100 * wrong / predicted if predicted else float("nan"))

    def gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient, shape (P,), at a point x of shape (P,)."""
        total, sums = 0.0, FlatVector(self.params)
        with self.at(x) as model, torch.enable_grad():
            for inputs, targets in self.batches:
                loss = self.loss(model(inputs), targets)
                grads = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(sums.views, list(grads), alpha=len(targets) / self.samples)
                total += loss.item() * len(targets)
        return total / self.samples, sums.vector

    def ascent(self, x: Tensor, rho: float) -> Tensor:
        """Return x + rho g / |g|, shape (P,), the point at which f_SAM(x) evaluates f."""
        _, grad = self.gradient(x)
        norm = torch.linalg.vector_norm(grad)
        return self.vector(x) + (grad * (rho / norm) if norm > 0 else 0.0)

    def check(self, x: Tensor | None = None) -> None:
        """Evaluate loss and gradient twice at a point, to detect randomness.

        Args:
            x: shape (P,). Default: the model's present parameters.

        Raises:
            InputError: the model is not deterministic, or its loss is not finite.
        """
        x = self.start() if x is None else x
        (first, grad), (second, grad2) = self.gradient(x), self.gradient(x)
        if first != first or abs(first) == float("inf"):
            raise InputError(f"loss: expected a finite number at the given state, found {first}")
        if abs(first - second) > ROUNDING * max(1.0, abs(first)):
            raise InputError(
                f"model: expected the same loss twice, found {first:.6g} and {second:.6g}: "
                "the model is random in eval mode"
            )
        change = float(torch.linalg.vector_norm(grad - grad2) / torch.linalg.vector_norm(grad).clamp_min(1e-12))
        if change > 100 * ROUNDING:
            raise InputError(f"model: expected the same gradient twice, found a relative difference of {change:.2g}")


def fixed_batches(data: Iterable[Batch], at_most: int | None = None) -> list[Batch]:
    """Return the first batches of data whose order is fixed, such as a DataLoader without shuffling.

    Args:
        data: yields (inputs, targets) in each pass.
        at_most: largest number of samples. Default: all.

    Raises:
        InputError: a second pass yields other samples, or the data do not yield pairs of tensors.
    """
    first, second = (list(_first(data, at_most)) for _ in range(2))
    same = len(first) == len(second) and all(
        torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )
    if not same:
        raise InputError(
            "data: expected the same samples in each pass, found others in the second: "
            "turn off shuffling and random augmentation"
        )
    return first


def _first(data: Iterable[Batch], at_most: int | None) -> Iterator[Batch]:
    remaining = at_most
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise InputError(f"data: expected pairs of tensors, inputs and targets, found {type(batch).__name__}")
        inputs, targets = batch[0][:remaining], batch[1][:remaining]
        if len(targets):
            yield inputs, targets
        if remaining is not None and (remaining := remaining - len(targets)) <= 0:
            return


def _classes(outputs: Tensor, targets: Tensor) -> bool:
    """Return whether outputs are scores of classes, (B, classes, ...), and targets classes, (B, ...)."""
    if targets.is_floating_point() or targets.ndim < 1 or outputs.ndim != targets.ndim + 1:
        return False
    return outputs.shape[:1] + outputs.shape[2:] == targets.shape
