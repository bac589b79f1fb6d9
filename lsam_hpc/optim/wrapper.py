"""An optimizer around another one: it shares the other's groups and state, and calls its own hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.optim import Optimizer


class OptimizerWrapper(Optimizer):
    """An optimizer whose `param_groups` and `state` are another optimizer's own objects.

    Subclasses define `step`, `check_unperturbed`, and `_state` and `_load`, around which the hooks are called.

    Args:
        base: the other optimizer.
        defaults: options of the groups in addition to the base's.
    """

    base: Optimizer

    def __init__(self, base: Optimizer, defaults: dict[str, Any]) -> None:
        super().__init__(base.param_groups, {**base.defaults, **defaults})
        self.base = base
        self._in_step = False  # True in the body of `step`

    # Properties: the base optimizer replaces these objects when it loads a state. torch's constructor sets them.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base.param_groups if "base" in self.__dict__ else self.__dict__["_groups"]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["_groups"] = groups

    @property
    def state(self) -> Any:  # noqa: ANN401
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: object) -> None:
        pass

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Clear the gradients, as the base optimizer does: Opacus' has more to clear."""
        self.base.zero_grad(set_to_none)

    def in_step(self, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
        """Call a function as the body of `step`, around which torch calls the hooks of a step."""
        self._in_step = True
        try:
            return function(*args)
        finally:
            self._in_step = False

    def hooks(self, when: Literal["pre", "post"]) -> None:
        """Call the hooks of a step, in a method that takes a step outside `step`, around which torch calls them."""
        if self._in_step:
            return
        before, after = self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks
        hooks: Mapping[int, Callable[..., object]] = before if when == "pre" else after
        for hook in hooks.values():
            hook(self, (), {})

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and this one's; `torch.load(weights_only=True)` can read both."""
        self.check_unperturbed("state_dict")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self._state()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or a plain base optimizer's state, which leaves the rest unchanged."""
        self.check_unperturbed("load_state_dict")
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._load(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.base).__name__}, {', '.join(self._described())})"

    def _described(self) -> list[str]:
        raise NotImplementedError

    def check_unperturbed(self, method: str) -> None:
        """Raise RuntimeError, naming the method, if the parameters are not where a step has left them."""
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # For copy.deepcopy and pickle; torch's keeps only its own attributes. The `step` that a learning-rate scheduler
        # puts into this object steps this object, also from a copy.
        return {name: value for name, value in self.__dict__.items() if name != "step"}
