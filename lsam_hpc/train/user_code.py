"""Functions of the user, named MODULE:FUNCTION in an option."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lsam_hpc.errors import InputError


def import_function(option: str, spec: str) -> Callable[..., Any]:
    """Return the function that MODULE:FUNCTION names; modules of the working directory can be imported.

    Args:
        option: name of the option, for messages.
        spec: MODULE:FUNCTION.

    Raises:
        InputError: there is no such function.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise InputError(f"{option}: expected MODULE:FUNCTION, found {spec!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        imported = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module can raise any exception
        raise InputError(
            f"{option}: expected a function that can be imported, found {spec}: {_described(error)}"
        ) from error
    if not callable(imported):
        raise InputError(f"{option}: expected a function, found {type(imported).__name__} {spec}")
    return imported  # type: ignore[no-any-return]


def call_function(option: str, spec: str, *arguments: Any) -> Any:  # noqa: ANN401 - the user's function
    """Call the function that MODULE:FUNCTION names; return its result.

    Raises:
        InputError: there is no such function, or it raises an exception.
    """
    imported = import_function(option, spec)
    try:
        return imported(*arguments)
    except InputError:
        raise
    except Exception as error:  # the user's function can raise any exception
        raise InputError(f"{option}: expected {spec} to return, found {_described(error)}") from error


def _described(error: Exception) -> str:
    """Return an exception in one line, with the line of the user's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    place = f" ({user_frames[-1].filename}:{user_frames[-1].lineno})" if user_frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
