"""What every framework's adapter does with a chain: evaluate and save the center, and end the exchange."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.optim.sam import SAM


class Chain:
    """The chain of an optimizer during one training run of a framework.

    Args:
        optimizer: the optimizer inside the framework's wrappers; without a center, as SAM, there is nothing to do.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._chain = optimizer if isinstance(optimizer, LocalLSAM) else None
        self.at_center = False  # within `center`

    @contextmanager
    def center(self, model: nn.Module) -> Iterator[None]:
        """Return a context in which the model holds the center; without effect within itself and after `end`."""
        if self._chain is None or self.at_center:
            yield
            return
        self.at_center = True
        try:
            with self._chain.center(model):
                yield
        finally:
            self.at_center = False

    @torch.no_grad()
    def end(self, *, load_center: bool = True) -> None:
        """Complete all exchanges, load the center into the parameters, and end the exchange; collective for LSAM.

        Args:
            load_center: False leaves the parameters as they are. Default True.
        """
        chain, self._chain = self._chain, None
        if chain is None:
            return
        chain.drain()
        if hasattr(chain, "rendezvous"):  # LSAM: the center is complete when the last rank has ended
            chain.rendezvous()
        center = chain.read_center()
        if hasattr(chain, "close"):
            chain.close()
        if load_center:
            torch._foreach_copy_(chain.shared, center)


def inner(optimizer: object) -> SAM | None:
    """Return the SAM or LSAM inside a framework's wrappers of an optimizer; None for another optimizer."""
    while not isinstance(optimizer, SAM) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer if isinstance(optimizer, SAM) else None
