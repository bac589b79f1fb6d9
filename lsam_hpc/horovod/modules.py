"""Finds the modules that an optimizer's parameters belong to, and tells it of their modes, states and forward passes.

Horovod's optimizers are given parameters, not a model. The modules are those that a script calls: the outermost ones
that hold any of the parameters, seen by torch's global forward hook until the first step. From then on each has a
forward hook of its own, and `nn.Module.train`, `state_dict` and `load_state_dict` look whether they are meant.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class Owner(Protocol):
    """An optimizer as its modules see it."""

    def before_forward(self, module: nn.Module) -> None:
        """Hear that a root's forward pass begins."""

    def mode_changed(self) -> None:
        """Hear that a root changed between training and evaluation."""

    def state_of(self, names: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a state_dict has in place of these tensors."""

    def before_load(self, tensors: Iterable[Tensor]) -> None:
        """Hear that these tensors are about to be overwritten."""


class Roots:
    """The outermost modules that are called and hold any of an optimizer's parameters.

    Args:
        owner: the optimizer.
        params: its parameters.
    """

    def __init__(self, owner: Owner, params: list[Tensor]) -> None:
        self.found: list[nn.Module] = []
        self._owner = weakref.ref(owner)
        self._open = {id(p) for p in params}
        self._handles: list[RemovableHandle] = [register_module_forward_pre_hook(self._look)]

    def more(self, params: list[Tensor]) -> None:
        """Look for the modules of these parameters too."""
        self._open |= {id(p) for p in params} - {id(p) for module in self.found for p in module.parameters()}

    def settle(self) -> None:
        """Look for no others; have those that were found call the owner before each forward pass."""
        self._forget()
        _watch()
        for module in self.found:
            _owners[module] = self._owner
            self._handles.append(module.register_forward_pre_hook(_Before(self._owner)))

    def close(self) -> None:
        """Leave the modules as they were."""
        self._forget()
        for module in self.found:
            _owners.pop(module, None)

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _look(self, module: nn.Module, _: Any) -> None:  # noqa: ANN401
        if self._open:
            held = {id(p) for p in module.parameters()} & self._open
            if held:
                self._open -= held
                self.found.append(module)


class _Before:
    """The forward hook of a root; in a copy of the module, or in a file, it is one that does nothing."""

    def __init__(self, owner: weakref.ref[Owner]) -> None:
        self._owner = owner

    def __call__(self, module: nn.Module, _: Any) -> None:  # noqa: ANN401
        owner = self._owner()
        if owner is not None:
            owner.before_forward(module)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # {}.get(module, inputs) returns the inputs as they are, and whoever loads the file needs nothing of ours.
        return getattr, ({}, "get")


_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Owner]] = weakref.WeakKeyDictionary()


def _all_owners() -> Iterator[Owner]:
    return iter({id(owner): owner for ref in list(_owners.values()) if (owner := ref()) is not None}.values())


@functools.cache
def _watch() -> None:
    """Have torch's modules tell the owners."""
    train, state_dict, load_state_dict = nn.Module.train, nn.Module.state_dict, nn.Module.load_state_dict

    @functools.wraps(train)
    def told_train(self: nn.Module, mode: bool = True) -> nn.Module:
        result: nn.Module = train(self, mode)
        ref = _owners.get(self)
        if ref is not None and (owner := ref()) is not None:
            owner.mode_changed()
        return result

    @functools.wraps(state_dict)
    def told_state(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        state = state_dict(self, *args, **kwargs)
        # A module's own calls for its children come with a destination; keep_vars asks for the parameters themselves.
        if not args and kwargs.get("destination") is None and not kwargs.get("keep_vars"):
            prefix = kwargs.get("prefix", "")
            names = {prefix + name: t for name, t in _named(self) if prefix + name in state}
            for owner in _all_owners():
                state.update(owner.state_of(names))
        return state

    @functools.wraps(load_state_dict)
    def told_load(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        for owner in _all_owners():
            owner.before_load(t for _, t in _named(self))
        return load_state_dict(self, *args, **kwargs)

    nn.Module.train = told_train  # type: ignore[method-assign, assignment]
    nn.Module.state_dict = told_state  # type: ignore[method-assign]
    nn.Module.load_state_dict = told_load  # type: ignore[method-assign]


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
