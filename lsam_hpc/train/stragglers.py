"""Ranks that are slower than others, on purpose: how methods bear it is measured with them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from lsam_hpc.errors import InputError

if TYPE_CHECKING:
    import torch

SYNTAX = "none, or some of RANK:FACTOR, spread:SIGMA, pause:CHANCE:SECONDS"


class Stragglers:
    """Makes this rank's passes longer, by sleeping after each.

    Args:
        text: comma-separated. `3:2.5`: rank 3 takes 2.5 times as long (-1: the last rank); `spread:0.3`: each rank
            takes exp(0.3 |z|) times as long, z standard normal, drawn once; `pause:0.01:0.5`: after a pass, with
            chance 0.01, a pause that lasts 0.5 s on average (exponential).
        rank: of this process.
        ranks: of the job.
        seed: of what is drawn.

    Raises:
        InputError: the text is no such list, or names a rank that is not there.
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
                raise InputError(f"--stragglers: expected {SYNTAX}, with ranks below {ranks}, factors >= 1, chances "
                                 f"from 0 to 1, found {part!r}")  # fmt: skip

    @contextmanager
    def a_pass(self, device: torch.device) -> Iterator[None]:
        """Do one forward and backward pass inside of this."""
        began = time.perf_counter()
        yield
        if self.factor > 1:
            if device.type == "cuda":
                import torch  # not before: programs that only check options need none

                torch.cuda.synchronize(device)  # how long the pass took is not known before
            time.sleep((self.factor - 1) * (time.perf_counter() - began))
        if self._chance and self._random.random() < self._chance:
            time.sleep(self._random.exponential(self._mean))
