"""The ascent moves the parameters of chosen names only."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.optim.masks.base import Mask


class Layers(Mask):
    """Selects parameters by name: e = rho * g_L / (|g_L| + gamma) there, 0 elsewhere.

    Args:
        model: names the parameters.
        patterns: shell patterns of parameter names, for example "layer4.*" or "*.bias".

    Raises:
        InputError: a pattern matches no parameter.

    Source: the layer-wise comparison of Mueller et al. 2023 (arXiv 2306.04226).
    """

    partial = True

    def __init__(self, model: nn.Module, patterns: Sequence[str]) -> None:
        self._chosen: set[Tensor] = set()
        for pattern in patterns:
            matched = {p for name, p in model.named_parameters() if fnmatch.fnmatchcase(name, pattern)}
            if not matched:
                raise InputError(f"mask: expected a pattern that matches a parameter's name, found {pattern!r}")
            self._chosen |= matched

    def selects(self, param: Tensor) -> bool:
        """Return True if the parameter's name matches a pattern."""
        return param in self._chosen
