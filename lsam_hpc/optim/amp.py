"""Unscales gradients with torch's GradScaler, once per pass of a step."""

from __future__ import annotations

from typing import Any

from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer


class Pass:
    """Represents one pass of a step to a GradScaler, which needs only an object with param_groups."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups."""
        return self._optimizer.param_groups


def unscale(scaler: GradScaler | None, *optimizers: Any) -> bool:  # noqa: ANN401 - anything with param_groups
    """Unscale the gradients in the groups of the first object, unless they were unscaled under one of the objects.

    Each pass of a step needs an object of its own, because the scaler unscales once per object between its updates. An
    overflow in any pass makes the scaler's next `update` lower its scale.

    Args:
        scaler: the training loop's. None or disabled: nothing is unscaled.
        *optimizers: objects with param_groups under which this pass may have been unscaled.

    Returns:
        True if all gradients are finite; always True without an enabled scaler.
    """
    if scaler is None or not scaler.is_enabled():
        return True
    done = next((optimizer for optimizer in optimizers if unscaled(scaler, optimizer)), None)
    if done is None:
        done = optimizers[0]
        scaler.unscale_(done)
    overflows = scaler._per_optimizer_states[id(done)]["found_inf_per_device"]
    return not any(flag.item() for flag in overflows.values())


def unscaled(scaler: GradScaler | None, optimizer: Any) -> bool:  # noqa: ANN401 - anything with param_groups
    """Return True if the scaler has unscaled the optimizer's gradients since the scaler's last update."""
    if scaler is None or not scaler.is_enabled() or id(optimizer) not in scaler._per_optimizer_states:
        return False
    return bool(scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED)


def forget(scaler: GradScaler | None, *optimizers: Any) -> None:  # noqa: ANN401 - anything with param_groups
    """Remove the optimizers from the scaler's records, so that gradients unscaled in a failed step do not count."""
    for optimizer in optimizers:
        if scaler is not None:
            scaler._per_optimizer_states.pop(id(optimizer), None)
