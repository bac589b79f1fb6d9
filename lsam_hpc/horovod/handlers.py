"""The elastic state of an optimizer with a chain, for `hvd.elastic`."""

from __future__ import annotations

from typing import Any

from horovod.torch.elastic import state
from torch import Tensor

from lsam_hpc.horovod.broadcasts import broadcast_optimizer_state
from lsam_hpc.horovod.wrapped import LsamOptimizer


class ChainHandler(state.StateHandler):  # type: ignore[misc]
    """Commits and restores the chain with the optimizer's state; restoring is collective."""

    value: LsamOptimizer

    def __init__(self, optimizer: LsamOptimizer) -> None:
        super().__init__(optimizer)
        self.save()

    def save(self) -> None:
        """Copy the sample, the center and the optimizer's state."""
        self.value.restore_sample()
        chain = self.value.chain
        self._chain = None if chain is None else _copied(chain.state_dict())
        self._state = _copied(self.value.base.state_dict())
        self.value.mode_changed()

    def restore(self) -> None:
        """Restore the last copy; collective."""
        self.value.restore_sample()
        if self.value.chain is not None and self._chain is not None:
            self.value.chain.load_state_dict(_copied(self._chain))
        else:
            self.value.restart()  # the copy is from before the first step
            self.value.base.load_state_dict(_copied(self._state))
        self.value.mode_changed()

    def sync(self) -> None:
        """Copy rank 0's optimizer state to all ranks."""
        broadcast_optimizer_state(self.value, 0)


def register() -> None:
    """Make `hvd.elastic.TorchState` use the handler."""
    known = state.get_handler_registry()
    if (LsamOptimizer, ChainHandler) not in known:
        state.set_handler_registry([(LsamOptimizer, ChainHandler), *known])


def _copied(state: Any) -> Any:  # noqa: ANN401
    """Return a deep copy of a state."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
