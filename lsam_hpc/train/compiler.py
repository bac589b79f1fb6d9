"""Keeps the first optimizer from importing torch's compiler, which a job that compiles nothing does not need.

torch.optim imports torch._dynamo, 820 modules and more than a second of a core, to call two functions that do nothing
outside compiled code. A stand-in has these two, and gives way to the real module as soon as it is asked for more.
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
        """End a graph: without a compiler there is none."""

    def disable(self, fn: Callable[_P, _T], recursive: bool = True, wrapping: bool = True) -> Callable[_P, _T]:
        """Return a function that the compiler leaves alone, if it is there when the function is called."""

        @functools.wraps(fn)
        def disabled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            if sys.modules.get(_NAME) is self:
                return fn(*args, **kwargs)
            real: Callable[_P, _T] = _real().disable(fn, recursive, wrapping=wrapping)
            return real(*args, **kwargs)

        return disabled

    def __getattr__(self, name: str) -> object:
        # __path__: a module below it is imported. For others with underscores anybody asks who looks at all modules.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_real(), name)


def postpone_compiler() -> None:
    """Have torch's compiler imported when it is first used."""
    if _NAME not in sys.modules:
        stand_in = _StandIn(_NAME)
        stand_in.__file__ = None  # as a namespace's: inspect looks for every module's file
        sys.modules[_NAME] = stand_in
        torch._dynamo = stand_in


def _real() -> ModuleType:
    if isinstance(sys.modules.get(_NAME), _StandIn):
        del sys.modules[_NAME]
        del torch._dynamo
    return importlib.import_module(_NAME)
