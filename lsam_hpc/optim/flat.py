"""Packs a list of tensors into one flat vector and unpacks it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsam_hpc.optim.shards import check_whole


class FlatVector:
    """A flat vector, and one view of it per tensor of a list.

    Args:
        like: tensors whose shapes, in this order, make up the vector; P elements in all. They are not copied.
        dtype: of the vector. Default None: float64 if a tensor has it, else float32.
        device: of the vector. Default None: the first tensor's.

    Raises:
        InputError: a tensor is a DTensor, of which this rank holds a part.
    """

    def __init__(
        self, like: Sequence[Tensor], dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        check_whole(like)
        dtype = dtype or widest_dtype(like)
        self.vector = torch.zeros(sum(t.numel() for t in like), dtype=dtype, device=device or like[0].device)
        pieces = self.vector.split([t.numel() for t in like])
        self.views = [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy the tensors into the vector, shape (P,), and return it."""
        # One torch.cat runs at memory bandwidth; a loop of copies is a fifth slower on the CPU.
        torch.cat([t.reshape(-1).to(self.vector) for t in tensors], out=self.vector)
        return self.vector

    @torch.no_grad()
    def scatter(self, tensors: Sequence[Tensor]) -> None:
        """Copy the vector into the tensors, in place."""
        torch._foreach_copy_(list(tensors), self.views)


def widest_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return float64 if any of the tensors has it, else float32."""
    return torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32
