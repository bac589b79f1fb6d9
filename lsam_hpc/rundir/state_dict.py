"""Reads a file with a model's state_dict, without running code from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError


def read_state_dict(path: Path, expected: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU.

    Args:
        path: of a file that `torch.save` wrote, for example RUN/checkpoints/center.pt.
        expected: names and shapes of tensors; the file may have others too.

    Raises:
        InputError: the file cannot be read, or lacks one of the tensors, or has one of another shape.
    """
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: expected a file with a state_dict, found: {error.strerror or error}") from error
    except Exception as error:  # torch.load documents no exception class for damaged files
        raise InputError(
            f"{path}: expected a state_dict that torch.load(weights_only=True) reads, "
            f"found: {str(error).splitlines()[0]}"
        ) from error
    for name, shape in expected:
        value = state_dict.get(name) if isinstance(state_dict, dict) else None
        if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
            actual = tuple(value.shape) if isinstance(value, Tensor) else "none"
            raise InputError(f"{path}: expected {name} of shape {tuple(shape)}, found {actual}")
    tensors: dict[str, Tensor] = state_dict
    return tensors


def load_model(model: nn.Module, path: Path) -> None:
    """Replace a model's parameters and buffers by those in a file.

    Raises:
        InputError: as of `read_state_dict`, or the file has a tensor that the model has not.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = read_state_dict(path, own.items())
    for name in tensors:
        if name not in own:
            raise InputError(f"{path}: expected the model's tensors only, found {name}")
    model.load_state_dict(tensors)
