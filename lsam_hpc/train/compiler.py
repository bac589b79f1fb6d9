"""Keeps the first optimizer from importing torch's compiler, which a job that compiles nothing does not need.

torch.optim imports torch._dynamo, 820 modules and more than a second of a core, to call two functions that do nothing
outside compiled code. A stand-in has these two, and gives way to the real module as soon as anything else is asked of it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """torch._dynamo until it is needed."""

    def graph_break(self, msg: str = "") -> None:
        """End a graph: without a compiler there is none."""

    def disable(self, fn: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """Return a function that the compiler, if it is there when it is called, leaves alone."""

        @functools.wraps(fn)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            if sys.modules.get(_NAME) is self:
                return fn(*args, **kwargs)
            return _real().disable(fn, recursive, **options)(*args, **kwargs)

        return disabled

    def __getattr__(self, name: str) -> Any:
        # __path__: a module below it is imported. Others with underscores are asked by whoever walks over all modules.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_real(), name)


def postpone_compiler() -> None:
    """Have torch's compiler imported when it is first used."""
    if _NAME not in sys.modules:
        stand_in = _StandIn(_NAME)
        stand_in.__file__ = None  # as a namespace's: inspect looks for every module's file
        sys.modules[_NAME] = stand_in
        torch._dynamo = stand_in  # type: ignore[attr-defined]


def _real() -> ModuleType:
    if isinstance(sys.modules.get(_NAME), _StandIn):
        del sys.modules[_NAME]
        del torch._dynamo  # type: ignore[attr-defined]
    return importlib.import_module(_NAME)
