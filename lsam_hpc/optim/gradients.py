"""Collects, clears and checks the gradients of parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lsam_hpc.errors import InputError


class Gradients(NamedTuple):
    """Parameters, and the gradient of each."""

    params: list[Tensor]
    grads: list[Tensor]


def present(parameters: Iterable[Tensor]) -> Gradients:
    """Return the parameters that have a gradient, and the gradients.

    Raises:
        RuntimeError: no parameter has a gradient.
        InputError: a gradient is sparse.
    """
    params: list[Tensor] = []
    grads: list[Tensor] = []
    for p in parameters:
        if (grad := p.grad) is not None:
            if grad.layout is not torch.strided:
                raise InputError(
                    f"gradients: expected dense gradients, found {grad.layout} for a parameter of shape "
                    f"{tuple(p.shape)}: an embedding needs sparse=False"
                )
            params.append(p)
            grads.append(grad)
    if not params:
        raise RuntimeError("no parameter has a gradient: call loss.backward() first, in step's closure too")
    return Gradients(params, grads)


def clear(params: Iterable[Tensor]) -> None:
    """Set the gradients of the parameters to None."""
    for p in params:
        p.grad = None


def take(parameters: Iterable[Tensor]) -> Gradients:
    """Return the parameters that have a gradient, and the gradients, and set these to None on the parameters."""
    taken = present(parameters)
    clear(taken.params)
    return taken


def set_grads(gradients: Gradients) -> None:
    """Put gradients into the parameters."""
    for p, g in zip(*gradients, strict=True):
        p.grad = g


def check_real(parameters: Iterable[Tensor]) -> None:
    """Raise InputError if a parameter is complex."""
    for p in parameters:
        if p.is_complex():
            raise InputError(
                f"parameters: expected real parameters, found {p.dtype} of shape {tuple(p.shape)}: "
                "optimize torch.view_as_real of it"
            )
