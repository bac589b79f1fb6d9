"""Imports of optional packages that only some of the landscape tools need."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.util.extras import install_command


def package(name: str, needed_by: str = "") -> Any:  # noqa: ANN401 (any module)
    """Import an optional package.

    Args:
        name: of the package or of a module in it.
        needed_by: the function that needs it, for the error message. Default: none is named.

    Raises:
        InputError: the package, or one that it imports, is not installed or cannot be imported.
    """
    top = name.partition(".")[0]
    start = f"{needed_by}: " if needed_by else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = (error.name or name).partition(".")[0]
            through = "" if missing == top else f", which {top} needs"
            raise InputError(
                f"{start}expected the package {missing}{through}, found none: {install_command(missing)}"
            ) from error
        except Exception as error:  # a package that does not fit the others can raise any exception
            words = " ".join(str(error).split())
            raise InputError(
                f"{start}expected the package {top}, found one that cannot be imported: {type(error).__name__}: {words}"
            ) from error


def require(*names: str) -> None:
    """Import packages now, so that a program names one that is missing before it computes anything; see `package`."""
    for name in names:
        package(name)
