"""One's own functions, named MODULE:FUNCTION in an option."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lsam_hpc.errors import InputError


def function(option: str, spec: str) -> Callable[..., Any]:
    """Return what MODULE:FUNCTION names; the working directory's modules are found.

    Args:
        option: the flag, for messages.
        spec: as the user gave it.

    Raises:
        InputError: there is no such function.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise InputError(f"{option}: expected MODULE:FUNCTION, found {spec!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # one's own module may fail with anything
        raise InputError(f"{option}: expected a function that can be imported, found {spec}: {_told(error)}") from error
    if not callable(found):
        raise InputError(f"{option}: expected a function, found {type(found).__name__} {spec}")
    return found  # type: ignore[no-any-return]


def call(option: str, spec: str, *arguments: Any) -> Any:  # noqa: ANN401 - one's own
    """Return what MODULE:FUNCTION returns.

    Raises:
        InputError: there is no such function, or it raises an exception.
    """
    found = function(option, spec)
    try:
        return found(*arguments)
    except InputError:
        raise
    except Exception as error:  # one's own function may fail with anything
        raise InputError(f"{option}: expected {spec} to return, found {_told(error)}") from error


def _told(error: Exception) -> str:
    """Return an exception in one line, with the place in one's own code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
