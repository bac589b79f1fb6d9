"""Postpones the import of torch's compiler until it is used, because most jobs compile nothing.

torch.optim imports torch._dynamo (820 modules, more than 1 s of CPU time) to call two functions that do nothing
outside compiled code. A stand-in module has these two, and loads the real one when any other attribute is used.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch

_NAME = "torch._dynamo"
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _StandIn(ModuleType):
    """torch._dynamo until it is needed."""

    def graph_break(self, msg: str = "") -> None:
        """Do nothing: without a compiler there is no graph to break."""

    def disable(  # the signature of torch._dynamo.disable
        self,
        fn: Callable[_P, _T],
        recursive: bool = True,  # noqa: FBT001, FBT002 - torch passes it by position
        *,
        wrapping: bool = True,
    ) -> Callable[_P, _T]:
        """Return `fn`; once the real compiler is loaded, calls go through its own `disable`."""

        @functools.wraps(fn)
        def disabled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            if sys.modules.get(_NAME) is self:
                return fn(*args, **kwargs)
            real: Callable[_P, _T] = _real().disable(fn, recursive, wrapping=wrapping)
            return real(*args, **kwargs)

        return disabled

    def __getattr__(self, name: str) -> object:
        # __path__ means that a submodule is imported. Code that inspects all modules asks for other dunder names.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_real(), name)


def postpone_compiler() -> None:
    """Import torch's compiler only when it is first used."""
    if _NAME not in sys.modules:
        stand_in = _StandIn(_NAME)
        stand_in.__file__ = None  # as for a namespace package: inspect reads __file__ of every module
        sys.modules[_NAME] = stand_in
        torch._dynamo = stand_in


def _real() -> ModuleType:
    if isinstance(sys.modules.get(_NAME), _StandIn):
        del sys.modules[_NAME]
        del torch._dynamo
    return importlib.import_module(_NAME)
