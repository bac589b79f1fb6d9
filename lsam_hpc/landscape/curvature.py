"""The Hessian and the Gauss-Newton matrix of an objective at a point, as curvlinops' linear operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import package

MATRICES = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}
COLUMNS = 64  # of a matrix that is multiplied at a time: each holds all activations of a batch


class _Mean(nn.Module):
    """A mean loss as curvlinops takes it."""

    reduction = "mean"

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets)


def layers(objective: Objective) -> dict[str, list[int]]:
    """Return the indices of each layer's parameters: those of "a.b.weight" and "a.b.bias" belong to "a.b"."""
    found: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(objective.layout):
        found.setdefault(name.rpartition(".")[0] or name, []).append(index)
    return found


@contextmanager
def curvature(
    objective: Objective,
    x: Tensor,
    matrix: str = "hessian",
    params: Sequence[int] | None = None,
    check: bool = True,
) -> Iterator[Any]:
    """Hold a point in the model and give a matrix of second derivatives there, as a curvlinops operator.

    The Hessian is that of the mean loss f; the Gauss-Newton matrix (GGN) is mean J^T H_out J, where J is the outputs'
    Jacobian and H_out the loss's Hessian in the outputs: it has no negative eigenvalues where the loss is convex.

    Args:
        objective: f; BatchNorm's statistics are those of the point, held fixed.
        x: the point, shape (P,).
        matrix: of `MATRICES`: `"hessian"` (default) or `"ggn"`.
        params: indices of the parameters whose diagonal block is meant, see `layers`. Default: all.
        check: evaluate twice first: loss, gradient and a product with the matrix.

    Raises:
        InputError: the package is missing, the matrix is not known, the loss is not finite, or something is random.

    Source: Dangel et al. 2025, "Position: Curvature matrices should be democratized via linear operators" (curvlinops).
    """
    if matrix not in MATRICES:
        raise InputError(f"matrix: expected one of {', '.join(MATRICES)}, found {matrix!r}")
    curvlinops = package("curvlinops", "curvature")
    if check:
        objective.check(x)
    chosen = objective.params if params is None else [objective.params[index] for index in params]
    with objective.at(x) as model:
        try:
            yield getattr(curvlinops, MATRICES[matrix])(
                model, _Mean(objective.loss), chosen, objective.batches,
                num_data=objective.samples, check_deterministic=check,
            )  # fmt: skip
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            raise InputError(f"model: expected the same product with the {matrix} twice, found others: {error}; "
                             "something in it is random, or --double is needed") from error  # fmt: skip


def dense(operator: Any) -> Tensor:  # noqa: ANN401
    """Return a small operator as a matrix, shape (P, P)."""
    eye = torch.eye(operator.shape[0], dtype=operator.dtype, device=operator.device)
    return torch.cat([operator @ part for part in eye.split(COLUMNS, 1)], 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random numbers, and give them their state back at the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
