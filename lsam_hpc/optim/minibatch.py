"""Mini-batches as the ascents handle them: tensors whose first dimension counts the samples, in containers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree

from lsam_hpc.errors import InputError


def first_part(batch: Any, fraction: float) -> Any:  # noqa: ANN401 - a tensor, or containers of tensors
    """Return the first `max(1, round(fraction * n))` of the n samples of a mini-batch.

    Args:
        batch: a tensor of shape (n, ...), or tuples, lists and dicts of such tensors; other values stay as they are.
        fraction: share of the samples, > 0 and <= 1.

    Raises:
        InputError: the batch holds no tensor, or tensors of different lengths.
    """
    values, structure = _pytree.tree_flatten(batch)
    lengths = {len(v) for v in values if isinstance(v, Tensor) and v.ndim}
    if len(lengths) != 1:
        text = "no tensor" if not lengths else f"tensors of {' and '.join(map(str, sorted(lengths)))} samples"
        raise InputError(f"batch: expected tensors with one row per sample, found {text}")
    count = max(1, round(fraction * lengths.pop()))
    return _pytree.tree_unflatten([v[:count] if isinstance(v, Tensor) and v.ndim else v for v in values], structure)
