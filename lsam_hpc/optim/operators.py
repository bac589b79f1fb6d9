"""The Hessian and the Gauss-Newton matrix of a model's loss on fixed batches, known by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lsam_hpc.errors import InputError

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # a batch's matrix times a vector, parameter by parameter

KEPT = 2 * 2**30  # bytes of graphs that are kept between products; graphs of further batches are made for each product
SPLIT = 10**8  # bytes of a batch's graph above which it is divided on CPUs, whose caches are small
PROBE = 16  # samples whose graph is measured for this


class MeanLoss(Protocol):
    """A mean loss over batches, as `Operator` sees it."""

    loss: Loss
    samples: int

    @property
    def batches(self) -> Sequence[Batch]:
        """Pairs (inputs, targets), `samples` in all."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the flat vectors."""

    @property
    def device(self) -> torch.device:
        """Device of the flat vectors."""


class Operator:
    """A symmetric matrix at the model's present point; `operator @ v` multiplies it by v of shape (P,) or (P, n).

    The graph of each batch's first derivatives is made once and kept, so that a product is one more backward pass.
    Graphs of further batches that do not fit into `KEPT` bytes are made again for every product. On CPUs batches are
    divided if the loss is cross-entropy, of which a batch's is the mean of its parts'.

    Args:
        objective: the mean loss f.
        model: its model, at the point.
        matrix: one of `MATRICES`.
        params: parameters whose block is taken.
    """

    def __init__(self, objective: MeanLoss, model: nn.Module, matrix: str, params: Sequence[Tensor]) -> None:
        self.dtype, self.device = objective.dtype, objective.device
        self._objective, self._model, self._params = objective, model, list(params)
        self._first = MATRICES[matrix]
        self._sizes = [p.numel() for p in self._params]
        self.shape = (sum(self._sizes), sum(self._sizes))
        self._graphs: list[Product] = []
        self._batches = list(objective.batches)
        first, adds = self._batches[0], _adds(objective)
        if len(self._batches) == 1 and not adds:  # making it again would take as much memory
            self._graphs.append(self._graph(first))
            return
        probe = (first[0][:PROBE], first[1][:PROBE]) if adds else first
        per_sample = max(1, self._bytes(probe)) / len(probe[1])
        if adds:
            pairs = [_parts(batch, per_sample) for batch in self._batches]
            self._batches = [part for parts in pairs for part in parts]
        used = 0.0
        for batch in self._batches:
            used += per_sample * len(batch[1])
            if used > KEPT:
                break
            self._graphs.append(self._graph(batch))

    def __matmul__(self, v: Tensor) -> Tensor:
        if v.ndim == 2:
            return torch.stack([self @ column for column in v.T], 1)
        return self._sum(v, self._graphs)

    def difference(self, v: Tensor) -> float:
        """Return the relative difference between two products with v, the second one from new graphs."""
        first, second = self @ v, self._sum(v, [])
        return float(torch.linalg.vector_norm(first - second) / torch.linalg.vector_norm(first).clamp_min(1e-12))

    def _sum(self, v: Tensor, graphs: Sequence[Product]) -> Tensor:
        pieces = v.to(self.device, self.dtype).split(self._sizes)
        vectors = [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, self._params, strict=True)]
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for index, batch in enumerate(self._batches):
            graph = graphs[index] if index < len(graphs) else self._graph(batch)
            parts = torch.cat([part.reshape(-1).to(self.dtype) for part in graph(vectors)])
            total.add_(parts, alpha=len(batch[1]) / self._objective.samples)
        return total

    def _graph(self, batch: Batch) -> Product:
        with torch.enable_grad():
            return self._first(self._model, self._objective.loss, batch, self._params)

    def _bytes(self, batch: Batch) -> int:
        """Return the memory of a batch's graph, without the parameters."""
        own = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        sizes: dict[int, int] = {}

        def pack(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return saved.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            graph = self._graph(batch)  # kept until the sum is taken, so that no memory is counted twice
        size = sum(sizes.values())
        del graph
        return size


def _adds(objective: MeanLoss) -> bool:
    """Return True if batches are to be divided: on CPUs, where a batch's loss is the mean of its samples' losses."""
    if objective.device.type != "cpu" or objective.loss is not functional.cross_entropy:
        return False
    return not any(bool((y < 0).any()) for _, y in objective.batches)  # cross-entropy leaves targets of -100 out


def _parts(batch: Batch, per_sample: float) -> Sequence[Batch]:
    """Return parts of about equal size of a batch, whose graphs have at most `SPLIT` bytes."""
    count = min(len(batch[1]), math.ceil(per_sample * len(batch[1]) / SPLIT))
    return list(zip(*(t.tensor_split(count) for t in batch), strict=True))


def _hessian(model: nn.Module, loss: Loss, batch: Batch, params: Sequence[Tensor]) -> Product:
    """Return v -> H v: the derivative of g . v."""
    inputs, targets = batch
    gradient = _vjp([loss(model(inputs), targets)], params, None, create_graph=True)
    return lambda v: _vjp(gradient, params, v)


def _ggn(model: nn.Module, loss: Loss, batch: Batch, params: Sequence[Tensor]) -> Product:
    """Return v -> J^T H_out J v. J v is the derivative of J^T u . v in u, so that no forward mode is needed."""
    inputs, targets = batch
    outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"model: expected a tensor of outputs for the Gauss-Newton matrix, found {type(outputs).__name__}: "
            "only the Hessian is defined (--matrix hessian)"
        )
    at = outputs.detach().requires_grad_()
    slope = _vjp([loss(at, targets)], [at], None, create_graph=True)
    u = torch.zeros_like(outputs, requires_grad=True)
    transposed = _vjp([outputs], params, [u], create_graph=True)

    def product(v: Sequence[Tensor]) -> Sequence[Tensor]:
        moved = _vjp(transposed, [u], v)
        return _vjp([outputs], params, _vjp(slope, [at], moved))

    return product


MATRICES = {"hessian": _hessian, "ggn": _ggn}


def _vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], v: Sequence[Tensor] | None, *, create_graph: bool = False
) -> Sequence[Tensor]:
    """Return J^T v of outputs in inputs, 0 where an output does not depend on them; v None: 1 for scalar outputs."""
    weights = v if v is not None else [torch.ones_like(output) for output in outputs]
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    derivatives = torch.autograd.grad(
        [output for output, _ in pairs],
        list(inputs),
        [weight for _, weight in pairs],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    if create_graph:
        _raise_if_once(derivatives)
    return derivatives


def _raise_if_once(derivatives: Sequence[Tensor]) -> None:
    """Raise if a graph has functions marked as @once_differentiable: torch may take their derivative for 0."""
    nodes = [tensor.grad_fn for tensor in derivatives]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function whose derivative is @once_differentiable cannot be differentiated twice")
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Make second derivatives possible where they are: attention's `math` kernel is used.

    Raises:
        InputError: a layer's derivative cannot be differentiated.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error).lower() for words in ("derivative for", "twice", "double backward")):
                raise
            text = str(error).strip().splitlines()[0]
            raise InputError(f"model: expected layers that can be differentiated twice, found: {text}") from error
