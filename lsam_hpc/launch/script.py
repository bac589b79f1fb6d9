"""Runs a script as `python script.py` does."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from lsam_hpc.errors import InputError


def compiled(path: str) -> CodeType:
    """Return the compiled code of a script.

    Raises:
        InputError: the file cannot be read, or is not valid Python.
    """
    try:
        return compile(Path(path).read_bytes(), os.path.abspath(path), "exec", dont_inherit=True)
    except OSError as error:
        raise InputError(f"script: expected a readable Python file, found {path}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"{path}: expected Python, found: {error.args[0]} in line {line}") from error


def run(path: str, arguments: Sequence[str]) -> None:
    """Run a script as `__main__`, which it remains: pickles and worker processes refer to it.

    Args:
        path: of the script.
        arguments: sys.argv[1:] of the script.

    Raises:
        InputError: the file cannot be read, or is not valid Python.
    """
    code = compiled(path)
    module = ModuleType("__main__")
    module.__file__ = code.co_filename
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    module.__loader__ = SourceFileLoader("__main__", code.co_filename)
    module.__dict__["__cached__"] = None
    if "__annotations__" in sys.modules["__main__"].__dict__:  # Python before 3.14
        module.__annotations__ = {}
    sys.argv[:] = [path, *arguments]
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.modules["__main__"] = module  # __spec__ stays None, as for any script: workers find it by its file
    exec(code, module.__dict__)
