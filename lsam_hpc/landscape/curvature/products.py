"""The Hessian and the Gauss-Newton matrix of an objective at a point, known by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.objective import Batch, Loss, Objective
from lsam_hpc.optim.accelerators import fork_rng

Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # a batch's matrix times a vector, parameter by parameter

KEPT = 2 * 2**30  # bytes of graphs that are kept between products; graphs of further batches are made for each product
RANDOM = 1e-3  # relative difference between two products that counts as randomness of the model


class Operator:
    """A symmetric matrix at the model's present point; `operator @ v` multiplies it by v of shape (P,) or (P, n).

    The graph of each batch's first derivatives is made once and kept, so that a product is one more backward pass.
    Graphs of batches that do not fit into `KEPT` bytes are made again for every product.

    Args:
        objective: f.
        model: its model, at the point.
        matrix: one of `MATRICES`.
        params: parameters whose block is taken.
    """

    def __init__(self, objective: Objective, model: nn.Module, matrix: str, params: Sequence[Tensor]) -> None:
        self.dtype, self.device = objective.dtype, objective.device
        self._objective, self._model, self._params = objective, model, list(params)
        self._first = MATRICES[matrix]
        self._sizes = [p.numel() for p in self._params]
        self.shape = (sum(self._sizes), sum(self._sizes))
        self._graphs: list[Product] = []
        first = objective.batches[0]
        per_sample = max(1, self._bytes(first)) / len(first[1])
        used = 0.0
        for batch in objective.batches:
            used += per_sample * len(batch[1])
            if used > KEPT:
                break
            self._graphs.append(self._graph(batch))

    def __matmul__(self, v: Tensor) -> Tensor:
        if v.ndim == 2:
            return torch.stack([self @ column for column in v.T], 1)
        return self._sum(v, self._graphs)

    def difference(self, v: Tensor) -> float:
        """Return the relative difference between two products with v, each from new graphs."""
        first, second = self._sum(v, []), self._sum(v, [])
        return float(torch.linalg.vector_norm(first - second) / torch.linalg.vector_norm(first).clamp_min(1e-12))

    def _sum(self, v: Tensor, graphs: Sequence[Product]) -> Tensor:
        pieces = v.to(self.device, self.dtype).split(self._sizes)
        vectors = [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, self._params, strict=True)]
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for index, batch in enumerate(self._objective.batches):
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


def layers(objective: Objective) -> dict[str, list[int]]:
    """Return the indices of each layer's parameters: "a.b.weight" and "a.b.bias" belong to layer "a.b"."""
    indices: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(objective.layout):
        indices.setdefault(name.rpartition(".")[0] or name, []).append(index)
    return indices


@contextmanager
def curvature(
    objective: Objective, x: Tensor, matrix: str = "hessian", params: Sequence[int] | None = None, *, check: bool = True
) -> Iterator[Operator]:
    """Set the model to a point and give a matrix of second derivatives there, for use within the body.

    The Hessian is that of the mean loss f; the Gauss-Newton matrix (GGN) is mean J^T H_out J, where J is the outputs'
    Jacobian and H_out the loss's Hessian in the outputs: it has no negative eigenvalues where the loss is convex.
    A product is a backward pass through the gradient's graph, or for the GGN one through each factor. Forward-mode
    differentiation, which many layers lack, is not used.

    Args:
        objective: f; BatchNorm's statistics are those at the point, held fixed.
        x: the point, shape (P,).
        matrix: `"hessian"` (default) or `"ggn"`.
        params: indices of parameters, see `layers`: take their diagonal block. Default: the whole matrix.
        check: first evaluate the loss, the gradient and a product with the matrix twice, to detect randomness.

    Raises:
        InputError: the matrix is unknown, the loss or a product is not finite, two evaluations differ, or a layer's
            derivative cannot be differentiated.

    Source: Pearlmutter 1994, "Fast Exact Multiplication by the Hessian"; Schraudolph 2002, "Fast Curvature
    Matrix-Vector Products for Second-Order Gradient Descent"; Townsend 2017, "A New Trick for Calculating Jacobian
    Vector Products", for J v.
    """
    if matrix not in MATRICES:
        raise InputError(f"matrix: expected one of {', '.join(MATRICES)}, found {matrix!r}")
    if check:
        objective.check(x)
    chosen = objective.params if params is None else [objective.params[index] for index in params]
    # Attention's other kernels have no second derivative.
    with objective.at(x) as model, sdpa_kernel(SDPBackend.MATH):
        try:
            operator = Operator(objective, model, matrix, chosen)
            if check:
                _check(operator, matrix)
            yield operator
        except RuntimeError as error:
            if not any(words in str(error).lower() for words in ("derivative for", "twice", "double backward")):
                raise
            text = str(error).strip().splitlines()[0]
            raise InputError(f"model: expected layers that can be differentiated twice, found: {text}") from error


def _check(operator: Operator, matrix: str) -> None:
    """Raise InputError if a product changes between two evaluations of the model."""
    generator = torch.Generator().manual_seed(0)
    change = operator.difference(torch.randn(operator.shape[0], generator=generator))
    if not math.isfinite(change):
        raise InputError(f"model: expected finite products with the {matrix} at the given state, found {change}")
    if change > RANDOM:
        raise InputError(
            f"model: expected the same product with the {matrix} twice, found different ones, by {change:.2g}: "
            "the model is random in eval mode, or needs float64 (--double)"
        )


def dense(operator: Operator) -> Tensor:
    """Return a small operator as a matrix, shape (P, P)."""
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype, device=operator.device)


@contextmanager
def seeded(seed: int, device: torch.device, repeat: int = 0) -> Iterator[None]:
    """Seed torch's random number generators for the body, then restore their state.

    Args:
        seed: of the random numbers.
        device: on which they are drawn.
        repeat: one of many independent sequences of the same seed. Default: 0.
    """
    with fork_rng(device):
        torch.manual_seed(int(np.random.SeedSequence((seed, repeat)).generate_state(1)[0]) if repeat else seed)
        yield
