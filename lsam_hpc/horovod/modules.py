"""Finds the modules that hold an optimizer's parameters, and notifies the optimizer of their calls.

A Horovod optimizer gets parameters, not a model. Until the first step torch's global forward hook collects the modules:
the outermost called ones that hold any of the parameters. After it each of them has its own forward hook, and
`nn.Module.train`, `state_dict` and `load_state_dict` are wrapped to notify the optimizer.
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
    """The methods of an optimizer that its modules call."""

    def before_forward(self, module: nn.Module) -> None:
        """Called before the forward pass of a root module."""

    def mode_changed(self) -> None:
        """Called after `train()` or `eval()` of a root module."""

    def state_of(self, names: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the replacements for some tensors of a state_dict, by name."""

    def before_load(self, tensors: Iterable[Tensor]) -> None:
        """Called before these tensors are overwritten by `load_state_dict`."""


class Roots:
    """The outermost modules that the script calls and that hold any of an optimizer's parameters.

    Args:
        owner: the optimizer.
        params: its parameters.
    """

    def __init__(self, owner: Owner, params: list[Tensor]) -> None:
        self.modules: list[nn.Module] = []
        self._owner = weakref.ref(owner)
        self._unassigned = {id(p) for p in params}
        self._handles: list[RemovableHandle] = [register_module_forward_pre_hook(self._collect)]

    def add_params(self, params: list[Tensor]) -> None:
        """Search for the modules of these parameters too."""
        self._unassigned |= {id(p) for p in params} - {id(p) for module in self.modules for p in module.parameters()}

    def finish_search(self) -> None:
        """End the search; from now on the modules call the owner before each forward pass."""
        self._remove_hooks()
        _patch_modules()
        for module in self.modules:
            _owners[module] = self._owner
            self._handles.append(module.register_forward_pre_hook(_Before(self._owner)))

    def close(self) -> None:
        """Remove all hooks."""
        self._remove_hooks()
        for module in self.modules:
            _owners.pop(module, None)

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _collect(self, module: nn.Module, _: Any) -> None:  # noqa: ANN401
        if self._unassigned:
            held = {id(p) for p in module.parameters()} & self._unassigned
            if held:
                self._unassigned -= held
                self.modules.append(module)


class _Before:
    """The forward hook of a root; copies and pickles of it do nothing."""

    def __init__(self, owner: weakref.ref[Owner]) -> None:
        self._owner = owner

    def __call__(self, module: nn.Module, _: Any) -> None:  # noqa: ANN401
        owner = self._owner()
        if owner is not None:
            owner.before_forward(module)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # {}.get(module, inputs) returns the inputs unchanged, and loading the file does not need lsam_hpc.
        return getattr, ({}, "get")


_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Owner]] = weakref.WeakKeyDictionary()


def _all_owners() -> Iterator[Owner]:
    return iter({id(owner): owner for ref in list(_owners.values()) if (owner := ref()) is not None}.values())


@functools.cache
def _patch_modules() -> None:
    """Wrap methods of `nn.Module` so that they notify the owners."""
    train, state_dict, load_state_dict = nn.Module.train, nn.Module.state_dict, nn.Module.load_state_dict

    @functools.wraps(train)
    def notifying_train(self: nn.Module, mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002 - torch's signature
        result: nn.Module = train(self, mode)
        ref = _owners.get(self)
        if ref is not None and (owner := ref()) is not None:
            owner.mode_changed()
        return result

    @functools.wraps(state_dict)
    def notifying_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        state = state_dict(self, *args, **kwargs)
        # A module calls its children's with a destination; keep_vars=True asks for the parameters themselves.
        if not args and kwargs.get("destination") is None and not kwargs.get("keep_vars"):
            prefix = kwargs.get("prefix", "")
            names = {prefix + name: t for name, t in _named(self) if prefix + name in state}
            for owner in _all_owners():
                state.update(owner.state_of(names))
        return state

    @functools.wraps(load_state_dict)
    def notifying_load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        for owner in _all_owners():
            owner.before_load(t for _, t in _named(self))
        return load_state_dict(self, *args, **kwargs)

    nn.Module.train = notifying_train  # type: ignore[method-assign, assignment]
    nn.Module.state_dict = notifying_state_dict  # type: ignore[method-assign]
    nn.Module.load_state_dict = notifying_load_state_dict  # type: ignore[method-assign]


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
