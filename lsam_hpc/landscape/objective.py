"""A loss on fixed data as a function of the flat vector of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim.batchnorm import kept, layers, recalibrate
from lsam_hpc.optim.flat import FlatVector

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
SAME = 1e-5  # relative difference of two evaluations of the same that counts as rounding


class Value(NamedTuple):
    """What an objective is at a point."""

    loss: float
    error: float  # in %; NaN where targets are no classes


class Objective:
    """f(x): the mean loss of a model over fixed batches, its gradient and its error.

    The model is in eval mode, but for BatchNorm: its statistics are computed anew from the batches at every point,
    since those of another point mean nothing there. The model and its buffers are as before after every call.

    Args:
        model: its trainable parameters are x, P in all, in the order of `model.parameters()`.
        batches: (inputs, targets), fixed; kept as they are given.
        loss: mean loss of a batch from outputs and targets. Default: cross-entropy.
        batch_norm: `"recalibrate"` (default), or `"keep"`: the statistics that the model has.

    Raises:
        InputError: there are no data, or nothing to train.
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
        self._recalibrates = batch_norm == "recalibrate" and bool(layers(model))
        self._at = FlatVector(self.params)

    @property
    def dtype(self) -> torch.dtype:
        """Of the flat vectors."""
        return self._at.vector.dtype

    @property
    def device(self) -> torch.device:
        """Of the flat vectors."""
        return self._at.vector.device

    def start(self) -> Tensor:
        """Return the model's parameters as they are, shape (P,)."""
        return self._at.gather(self.params).clone()

    def vector(self, x: object) -> Tensor:
        """Return a point as a vector of this objective's type and device, shape (P,).

        Raises:
            InputError: it has another size than the model.
        """
        found = torch.as_tensor(x, dtype=self.dtype, device=self.device).reshape(-1)
        if found.numel() != self.size:
            raise InputError(f"model: expected one of {found.numel()} parameters, as the state has, found {self.size}")
        return found

    @contextmanager
    def at(self, x: Tensor) -> Iterator[nn.Module]:
        """Hold a point in the model, in eval mode with BatchNorm's statistics for it; all is as before at the end."""
        before = [p.detach().clone() for p in self.params]
        with kept(self.model):
            try:
                self.model.eval()
                self._at.vector.copy_(self.vector(x))
                self._at.scatter(self.params)
                if self._recalibrates:
                    recalibrate(self.model, (inputs for inputs, _ in self.batches))
                yield self.model
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(list[Tensor](self.params), before)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Value:
        """Return the mean loss and the error at a point, shape (P,)."""
        total, wrong = 0.0, 0
        with self.at(x) as model:
            for inputs, targets in self.batches:
                outputs = model(inputs)
                total += float(self.loss(outputs, targets)) * len(targets)
                if _classes(outputs, targets):
                    wrong += int((outputs.argmax(1) != targets).sum())
        classified = _classes(outputs, targets)
        return Value(total / self.samples, 100 * wrong / self.samples if classified else float("nan"))

    def gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient at a point, shape (P,)."""
        total, sums = 0.0, FlatVector(self.params)
        with self.at(x) as model, torch.enable_grad():
            for inputs, targets in self.batches:
                loss = self.loss(model(inputs), targets)
                grads = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(sums.views, list(grads), alpha=len(targets) / self.samples)
                total += loss.item() * len(targets)
        return total / self.samples, sums.vector

    def ascent(self, x: Tensor, rho: float) -> Tensor:
        """Return x + rho g / |g|, where f_SAM takes its value, shape (P,)."""
        _, grad = self.gradient(x)
        norm = torch.linalg.vector_norm(grad)
        return self.vector(x) + (grad * (rho / norm) if norm > 0 else 0.0)

    def check(self, x: Tensor | None = None) -> None:
        """Evaluate twice at a point.

        Args:
            x: shape (P,). Default: the model as it is.

        Raises:
            InputError: the model is not deterministic, or its loss is not finite.
        """
        x = self.start() if x is None else x
        (first, grad), (second, again) = self.gradient(x), self.gradient(x)
        if first != first or abs(first) == float("inf"):
            raise InputError(f"loss: expected a finite number at the given state, found {first}")
        if abs(first - second) > SAME * max(1.0, abs(first)):
            raise InputError(f"model: expected the same loss twice, found {first:.6g} and {second:.6g}: "
                             "something in it is random in eval mode")  # fmt: skip
        far = float(torch.linalg.vector_norm(grad - again) / torch.linalg.vector_norm(grad).clamp_min(1e-12))
        if far > 100 * SAME:
            raise InputError(f"model: expected the same gradient twice, found a relative difference of {far:.2g}")


def fixed_batches(data: Iterable[Batch], at_most: int | None = None) -> list[Batch]:
    """Return the first batches of data that gives the same each time, as a DataLoader without shuffling.

    Args:
        data: gives (inputs, targets) each time that it is gone through.
        at_most: number of samples after which the rest is left out. Default: all.

    Raises:
        InputError: a second pass gives something else, or it gives no pairs of tensors.
    """
    first, second = (list(_some(data, at_most)) for _ in range(2))
    same = len(first) == len(second) and all(
        torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )
    if not same:
        raise InputError("data: expected the same samples in each pass, found others in the second: "
                         "turn shuffling and random augmentation off")  # fmt: skip
    return first


def _some(data: Iterable[Batch], at_most: int | None) -> Iterator[Batch]:
    left = at_most
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise InputError(f"data: expected pairs of tensors, inputs and targets, found {type(batch).__name__}")
        inputs, targets = batch[0][:left], batch[1][:left]
        if len(targets):
            yield inputs, targets
        if left is not None and (left := left - len(targets)) <= 0:
            return


def _classes(outputs: Tensor, targets: Tensor) -> bool:
    return outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
