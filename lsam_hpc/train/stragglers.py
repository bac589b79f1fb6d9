"""Artificially slow ranks, to measure how methods cope with stragglers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.options.training import STRAGGLERS

if TYPE_CHECKING:
    import torch


class Stragglers:
    """Slows this rank down by sleeping after each forward and backward pass.

    Args:
        text: comma-separated. `3:2.5`: rank 3 takes 2.5 times as long (-1: the last rank); `spread:0.3`: each rank
            takes exp(0.3 |z|) times as long, z standard normal, drawn once; `pause:0.01:0.5`: after a pass, with
            probability 0.01, a pause of 0.5 s on average (exponential).
        rank: of this process.
        ranks: number of ranks of the job.
        seed: of the random numbers.

    Raises:
        InputError: the text is no such list, or names a rank that does not exist.
    """

    def __init__(self, text: str, rank: int, ranks: int, seed: int) -> None:
        self.factor = 1.0
        self._chance = self._mean = 0.0
        self._random = np.random.default_rng([seed, rank])
        for part in [] if text == "none" else text.split(","):
            kind, *numbers = part.split(":")
            try:
                values = [float(number) for number in numbers]
                if kind == "pause":
                    self._chance, self._mean = values
                    fits = 0 <= self._chance <= 1 and 0 <= self._mean < math.inf
                elif kind == "spread":
                    (sigma,) = values
                    fits = 0 <= sigma < math.inf
                    self.factor *= math.exp(sigma * abs(self._random.standard_normal()))
                else:
                    (factor,) = values
                    fits = 1 <= factor < math.inf and -ranks <= int(kind) < ranks
                    self.factor *= factor if rank == int(kind) % ranks else 1.0
            except (ValueError, OverflowError):
                fits = False
            if not fits:
                raise InputError(
                    f"--stragglers: expected {STRAGGLERS}, with ranks below {ranks}, factors >= 1, chances "
                    f"from 0 to 1, found {part!r}"
                )

    def a_pass(self, device: torch.device) -> AbstractContextManager[None]:
        """Return a context that slows down the forward and backward pass inside it."""
        return self._slowed(device) if self.factor > 1 or self._chance else nullcontext()

    @contextmanager
    def _slowed(self, device: torch.device) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.factor > 1:
            from lsam_hpc.optim.accelerators import module_of  # here: programs that only check options need no torch

            if (module := module_of(device)) is not None:
                module.synchronize(device)  # kernels run asynchronously: the pass ends here
            time.sleep((self.factor - 1) * (time.perf_counter() - began))
        if self._chance and self._random.random() < self._chance:
            time.sleep(self._random.exponential(self._mean))
