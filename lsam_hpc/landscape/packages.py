"""Packages that only some of the landscape tools need."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from lsam_hpc.errors import InputError


def package(name: str, what: str) -> Any:  # noqa: ANN401
    """Import a package of the extra `landscape`.

    Args:
        name: of the package or a module in it.
        what: needs it.

    Raises:
        InputError: it is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 tells of 1.0 when it is imported
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"{what}: expected the package {name.partition('.')[0]}, found none: "
                             "pip install 'lsam-hpc[landscape]'") from error  # fmt: skip
