"""Imports of optional packages that only some of the landscape tools need."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from lsam_hpc.errors import InputError


def package(name: str, needed_by: str) -> Any:  # noqa: ANN401 (any module)
    """Import a package of the extra `landscape`.

    Args:
        name: of the package or of a module in it.
        needed_by: the tool that needs it, for the error message.

    Raises:
        InputError: the package is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"{needed_by}: expected the package {name.partition('.')[0]}, found none: "
                "pip install 'lsam-hpc[landscape]'"
            ) from error
