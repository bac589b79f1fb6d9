"""Options as keyword arguments of a constructor: from a dataclass, with types and documentation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from lsam_hpc.options.option import fields, help_text

_P = ParamSpec("_P")
_A = TypeVar("_A")
_S = TypeVar("_S")
_B = TypeVar("_B")
_C = TypeVar("_C")


def takes(
    arguments: Callable[_P, _A],
) -> Callable[[Callable[[_S, _B, _A], None]], Callable[Concatenate[_S, _B, _P], None]]:
    """Return a decorator for `__init__(self, base, arguments)`: callers pass the dataclass's fields as keywords.

    Type checkers and editors see the keywords, and so does `inspect.signature`.
    """

    def decorate(init: Callable[[_S, _B, _A], None]) -> Callable[Concatenate[_S, _B, _P], None]:
        @functools.wraps(init)
        def wrapper(self: _S, base: _B, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
            init(self, base, arguments(*args, **kwargs))

        _sign(wrapper, init, arguments)
        return wrapper

    return decorate


def takes_after_two(
    arguments: Callable[_P, _A],
) -> Callable[[Callable[[_S, _B, _C, _A], None]], Callable[Concatenate[_S, _B, _C, _P], None]]:
    """Return a decorator as `takes` does, for `__init__(self, base, center, arguments)`."""

    def decorate(init: Callable[[_S, _B, _C, _A], None]) -> Callable[Concatenate[_S, _B, _C, _P], None]:
        @functools.wraps(init)
        def wrapper(self: _S, base: _B, center: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
            init(self, base, center, arguments(*args, **kwargs))

        _sign(wrapper, init, arguments)
        return wrapper

    return decorate


def _sign(wrapper: Any, init: Callable[..., None], arguments: Callable[..., object]) -> None:  # noqa: ANN401
    first = list(inspect.signature(init).parameters.values())[:-1]
    wrapper.__signature__ = inspect.Signature([*first, *inspect.signature(arguments).parameters.values()])


def documented(arguments: type) -> Callable[[_A], _A]:
    """Return a class decorator that replaces {options} in the docstring by the options' help."""

    def decorate(cls: Any) -> Any:  # noqa: ANN401 - a class
        lines = "\n".join(f"        {item.name}: {help_text(item)}." for item in fields(arguments))
        cls.__doc__ = (cls.__doc__ or "").replace("        {options}", lines)
        return cls

    return decorate
