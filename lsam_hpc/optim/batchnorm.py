"""Freezes, preserves and recomputes running statistics of BatchNorm and InstanceNorm layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim import Optimizer


class FrozenBatchNormStats:
    """Stops updates of a model's running statistics while its parameters are perturbed.

    Layers in training mode still normalize by the batch. `on` and `off` may be called repeatedly.

    Args:
        model: its layers are looked up at each `on`. None: `on` and `off` do nothing.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._stopped: list[tuple[_NormBase, Tensor | None, Tensor | None]] = []

    def on(self) -> None:
        """Stop updates of the statistics in all layers in training mode that track them."""
        if not self._stopped:
            # In evaluation mode a layer normalizes by the statistics, and InstanceNorm could not without them.
            training = [layer for layer in layers(self._model) if layer.training]
            self._stopped = [(layer, layer.running_mean, layer.running_var) for layer in training]
            for layer, _, _ in self._stopped:
                layer.track_running_stats = False
                if not isinstance(layer, _BatchNorm):  # InstanceNorm updates the statistics that it has
                    layer.running_mean = layer.running_var = None

    def off(self) -> None:
        """Allow updates again."""
        for layer, mean, variance in self._stopped:
            layer.running_mean, layer.running_var = mean, variance
            layer.track_running_stats = True
        self._stopped = []

    def __enter__(self) -> None:
        self.on()

    def __exit__(self, *_: object) -> None:
        self.off()

    @property
    def statistics(self) -> list[Tensor]:
        """The buffers of all layers that track running statistics."""
        return [buffer for layer in layers(self._model) for buffer in layer.buffers(recurse=False)]


def layers(model: nn.Module | None) -> list[_NormBase]:
    """Return the BatchNorm and InstanceNorm layers of a model that track running statistics; for None an empty list."""
    modules = model.modules() if model is not None else ()
    return [m for m in modules if isinstance(m, _NormBase) and m.track_running_stats]


@contextmanager
def preserve_module_state(model: nn.Module) -> Iterator[None]:
    """Restore every module's mode and every buffer's value when the body ends, also after an exception."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with _preserve_modes(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def _preserve_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def recalibrate(model: nn.Module, data: Iterable[Tensor]) -> None:
    """Set the running statistics of every BatchNorm and InstanceNorm layer to their mean over batches of inputs.

    Args:
        model: only the buffers of these layers change, and of BatchNorm layers only of those that the inputs reach.
        data: batches of inputs; not read if the model has no such layer.

    Source: Izmailov et al. 2018 (arXiv 1803.05407), section 3.3.
    """
    tracking = layers(model)
    if not tracking:
        return
    momenta = [layer.momentum for layer in tracking]
    before = [[buffer.clone() for buffer in layer.buffers(recurse=False)] for layer in tracking]
    with _preserve_modes(model):
        try:
            model.eval()  # dropout would change the inputs of these layers
            for layer in tracking:
                layer.reset_running_stats()
                layer.train()
            with torch.no_grad():
                for count, batch in enumerate(data, 1):
                    for layer in tracking:
                        layer.momentum = 1 / count  # the cumulative mean, which InstanceNorm has no mode for
                    model(batch)
        finally:
            for layer, momentum, buffers in zip(tracking, momenta, before, strict=True):
                layer.momentum = momentum
                # Not reached, such as the statistics of adversarial inputs; InstanceNorm does not count.
                if isinstance(layer, _BatchNorm) and not layer.num_batches_tracked:
                    for buffer, value in zip(layer.buffers(recurse=False), buffers, strict=True):
                        buffer.copy_(value)


def shared_tensors(base: Optimizer, model: nn.Module | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that a chain shares with its center: the parameters, and the model's BatchNorm statistics.

    The statistics follow the parameters in the center's vector. The exchanges move the center's statistics toward the
    average of the chains'; each chain keeps its own.
    """
    params = [p for group in base.param_groups for p in group["params"]]
    statistics = [s for layer in layers(model) for s in (layer.running_mean, layer.running_var) if s is not None]
    return params, statistics
