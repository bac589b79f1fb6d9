"""BatchNorm layers with separate statistics for clean and for adversarial inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lsam_hpc.errors import InputError


class SplitBatchNorm(_BatchNorm):
    """A BatchNorm layer with a second one, `adversarial`, in its place inside `adversarial_statistics`."""

    adversarial: _BatchNorm
    _for_adversarial = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the layer that is selected."""
        return self.adversarial(input) if self._for_adversarial else super().forward(input)


class SplitBatchNorm1d(SplitBatchNorm, nn.BatchNorm1d):
    """The split `BatchNorm1d`."""


class SplitBatchNorm2d(SplitBatchNorm, nn.BatchNorm2d):
    """The split `BatchNorm2d`."""


class SplitBatchNorm3d(SplitBatchNorm, nn.BatchNorm3d):
    """The split `BatchNorm3d`."""


_SPLIT: dict[type, type[SplitBatchNorm]] = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
    nn.BatchNorm3d: SplitBatchNorm3d,
}


def split_batchnorm(model: nn.Module, *, parameters: bool = False) -> nn.Module:
    """Give each BatchNorm layer of a model a second set of statistics, for adversarial inputs, in place.

    The layers stay the same objects, so that their names and a saved state of the model without the split stay valid;
    each gets a submodule `adversarial`.

    Args:
        model: call this before its optimizer is made. Without BatchNorm layers it stays as it is.
        parameters: give the second layers a scale and a shift of their own too, as the authors' code of ConAdv and
            AdvProp do. Default False: both layers share them, so that the model has the parameters that it had.

    Returns:
        The model.

    Raises:
        InputError: a BatchNorm layer is not of torch's classes BatchNorm1d, 2d and 3d, or was split before.

    Source: Xie et al. 2020, "Adversarial Examples Improve Image Recognition" (AdvProp, arXiv 1911.09665), the auxiliary
    BatchNorm; Liu et al. 2021 (arXiv 2106.00221).
    """
    found = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    for layer in found:
        if type(layer) not in _SPLIT:
            raise InputError(f"model: expected BatchNorm1d, 2d or 3d layers, found {type(layer).__name__}")
    for layer in found:
        second = copy.deepcopy(layer)
        if not parameters:
            second.weight, second.bias = layer.weight, layer.bias
        layer.__class__ = _SPLIT[type(layer)]
        layer.adversarial = second
    return model


@contextmanager
def adversarial_statistics(model: nn.Module) -> Iterator[None]:
    """Return a context in which the split layers of a model normalize by their second set of statistics."""
    split = [layer for layer in model.modules() if isinstance(layer, SplitBatchNorm)]
    try:
        for layer in split:
            layer._for_adversarial = True
        yield
    finally:
        for layer in split:
            layer._for_adversarial = False
