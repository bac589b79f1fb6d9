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
from lsam_hpc.optim.accelerators import fork_rng

MATRICES = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}
COLUMNS = 64  # columns multiplied at a time; each takes the memory of a batch's activations


class _Mean(nn.Module):
    """A mean loss in the form that curvlinops accepts."""

    reduction = "mean"

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets)


def layers(objective: Objective) -> dict[str, list[int]]:
    """Return the indices of each layer's parameters: "a.b.weight" and "a.b.bias" belong to layer "a.b"."""
    indices: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(objective.layout):
        indices.setdefault(name.rpartition(".")[0] or name, []).append(index)
    return indices


@contextmanager
def curvature(
    objective: Objective, x: Tensor, matrix: str = "hessian", params: Sequence[int] | None = None, *, check: bool = True
) -> Iterator[Any]:
    """Set the model to a point and give a matrix of second derivatives there, as a curvlinops operator.

    The Hessian is that of the mean loss f; the Gauss-Newton matrix (GGN) is mean J^T H_out J, where J is the outputs'
    Jacobian and H_out the loss's Hessian in the outputs: it has no negative eigenvalues where the loss is convex.

    Args:
        objective: f; BatchNorm's statistics are those at the point, held fixed.
        x: the point, shape (P,).
        matrix: `"hessian"` (default) or `"ggn"`.
        params: indices of parameters, see `layers`: take their diagonal block. Default: the whole matrix.
        check: first evaluate the loss, the gradient and a product with the matrix twice, to detect randomness.

    Raises:
        InputError: curvlinops is missing, the matrix is unknown, the loss is not finite, or two evaluations differ.

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
                model,
                _Mean(objective.loss),
                chosen,
                objective.batches,
                num_data=objective.samples,
                check_deterministic=check,
            )
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            raise InputError(
                f"model: expected the same product with the {matrix} twice, found different ones: {error}; "
                "the model is random in eval mode, or needs float64 (--double)"
            ) from error


def dense(operator: Any) -> Tensor:  # noqa: ANN401 (curvlinops is optional)
    """Return a small operator as a matrix, shape (P, P)."""
    eye = torch.eye(operator.shape[0], dtype=operator.dtype, device=operator.device)
    return torch.cat([operator @ part for part in eye.split(COLUMNS, 1)], 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random number generators for the body, then restore their state."""
    with fork_rng(device):
        torch.manual_seed(seed)
        yield
