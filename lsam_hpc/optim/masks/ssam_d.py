"""SSAM-D: the mask drops and regrows coordinates, fewer and fewer of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.optim.masks.base import DENSITY, REFRESH_SSAM, Sparse, generator_of, largest

Score = Literal["gradient", "weight", "random"]


class SSAMD(Sparse):
    """Selects coordinates by dynamic sparse training: e = rho * m g / (|g| + gamma).

    The first mask selects n - ceil(n (1 - density)) of the n coordinates at random. Every `refresh` ascents, from the
    first on, after the ascent and for the next one, with live = density * n:

        d = drop_rate (1 + cos(pi t / total)) / 2, t the number of earlier ascents

    int(live (1 - d)) of the selected coordinates remain, those with the largest scores; and int(min(live d, n - live))
    of the others are added, those with the largest scores. A score is |g| of the ascent, |x + e| or a random number.

    Args:
        total: steps of the training, at which d is 0, >= 1.
        density: share of the coordinates that move, > 0 and <= 1. Default 0.5.
        refresh: ascents between two masks, >= 1. Default 1000; the paper's is 5 epochs.
        drop_rate: d at the first ascent, 0 to 1. Default 0.5.
        drop: score of the selected coordinates: "gradient", "weight" or "random". Default "gradient".
        grow: score of the others. Default "random".
        seed: seed of the random numbers. Default 0.

    Raises:
        InputError: an argument is out of range.

    Source: Mi et al. 2022 (arXiv 2210.05177), algorithm 1, SSAM-D, and the authors' code, whose defaults `drop_rate`,
    `drop` and `grow` are.
    """

    def __init__(
        self,
        total: int,
        density: float = DENSITY,
        refresh: int = REFRESH_SSAM,
        *,
        drop_rate: float = 0.5,
        drop: Score = "gradient",
        grow: Score = "random",
        seed: int = 0,
    ) -> None:
        super().__init__(density, refresh)
        if total < 1:
            raise InputError(f"mask: expected a total of 1 step or more, found {total!r}")
        if not 0 <= drop_rate <= 1:
            raise InputError(f"mask: expected a drop rate from 0 to 1, found {drop_rate!r}")
        for score in (drop, grow):
            if score not in get_args(Score):
                raise InputError(f"mask: expected a score of {', '.join(get_args(Score))}, found {score!r}")
        self.total, self.drop_rate, self.drop, self.grow, self.seed = total, drop_rate, drop, grow, seed
        self._grads: list[Tensor] | None = None  # |g|, while a new mask is due

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Make random masks for parameters without one; keep |g| if a new mask is due."""
        self._grads = [g.abs() for g in grads] if self._count % self.refresh == 0 else None
        new = [p for p in params if p not in self._masks]
        if new:
            masks = self.make(new)
            self._masks.update(zip(new, masks, strict=True))

    def make(self, params: list[Tensor]) -> list[Tensor]:
        """Return random masks."""
        n = sum(p.numel() for p in params)
        generator = generator_of(self.seed, 0)
        draws = [torch.rand(p.shape, generator=generator) for p in params]
        masks = largest(draws, n - math.ceil(n * (1 - self.density)))
        return [mask.to(p.device) for mask, p in zip(masks, params, strict=True)]

    def moved(self, params: Sequence[Tensor]) -> None:
        """Drop and regrow coordinates if a new mask is due."""
        if not params:
            return
        if self._grads is not None:
            self._replace(params, self._grads)
        self._grads = None
        self._count += 1

    def _replace(self, params: Sequence[Tensor], grads: list[Tensor]) -> None:
        masks = [self._masks[p] for p in params]
        n = sum(p.numel() for p in params)
        live = n - n * (1 - self.density)
        d = self.drop_rate * (1 + math.cos(math.pi * min(self._count / self.total, 1))) / 2
        generator = generator_of(self.seed, 1 + self._count)
        scores: dict[str, Callable[[int], Tensor]] = {
            "gradient": lambda i: grads[i],
            "weight": lambda i: params[i].detach().abs(),
            "random": lambda i: torch.rand(params[i].shape, generator=generator).to(params[i].device),
        }
        # 1e-7 as in the authors' code: a selected coordinate with score 0 is before one that is not selected.
        kept, grown = [], []
        for i, mask in enumerate(masks):
            kept.append((scores[self.drop](i) + 1e-7) * mask)
            grown.append((scores[self.grow](i) + 1e-7) * ~mask)
        kept_masks = largest(kept, int(live * (1 - d)))
        grown_masks = largest(grown, int(min(live * d, n - live)))
        self._masks.update((p, keep | grow) for p, keep, grow in zip(params, kept_masks, grown_masks, strict=True))
