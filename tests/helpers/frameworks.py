"""Imports the packages that have adapters, or skips the test that needs them."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cache
from types import ModuleType

import pytest
import torch

_MISSING = (  # the operators that torchvision describes while it is imported
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def torchvision() -> object | None:
    """Make torchvision, which timm and torchmetrics import, importable beside a CPU build of torch.

    The wheel on PyPI is for the build with CUDA. Beside another one its operators are missing, and its import fails.
    The tests need none of them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # the cache holds it: its end would remove the operators
    for operator in _MISSING:
        library.define(operator)
    importlib.import_module("torchvision")
    return library


def package(name: str) -> ModuleType:
    """Return a package's module; skip the test, or the file that calls this on import, if it is not installed."""
    torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: pip install lsam-hpc[dev]")
