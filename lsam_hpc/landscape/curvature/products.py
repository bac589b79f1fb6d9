"""The Hessian and the Gauss-Newton matrix of an objective at a point, known by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.optim.accelerators import fork_rng
from lsam_hpc.optim.operators import MATRICES, Operator, differentiated_twice

__all__ = ["MATRICES", "Operator", "check_products", "curvature", "dense", "layers", "seeded"]

RANDOM = 1e-3  # relative difference between two products that counts as randomness of the model


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
    with objective.at(x) as model, differentiated_twice():
        operator = Operator(objective, model, matrix, chosen)
        if check:
            check_products(operator, matrix)
        yield operator


def check_products(operator: Operator, matrix: str) -> None:
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
