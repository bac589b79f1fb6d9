"""Masks: which coordinates the ascent moves; one class in one module for each method."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lsam_hpc.errors import InputError
from lsam_hpc.optim.masks.adasap import AdaSAP
from lsam_hpc.optim.masks.base import REFRESH, REFRESH_SSAM, Mask
from lsam_hpc.optim.masks.fsam import FSAM
from lsam_hpc.optim.masks.layers import Layers
from lsam_hpc.optim.masks.norm import Norm
from lsam_hpc.optim.masks.random import Random
from lsam_hpc.optim.masks.sl_sam import SLSAM
from lsam_hpc.optim.masks.ssam_d import SSAMD
from lsam_hpc.optim.masks.ssam_f import SSAMF, Samples
from lsam_hpc.optim.masks.tensors import Tensors
from lsam_hpc.options.ascent import MASKS, AscentOptions

__all__ = [
    "FSAM",
    "SLSAM",
    "SSAMD",
    "SSAMF",
    "AdaSAP",
    "Layers",
    "Mask",
    "Norm",
    "Random",
    "Samples",
    "Tensors",
    "make",
    "resolve",
]

# What a name that is not enough stands for, and what it needs.
_NEED = {
    "norm": ("Norm(model)", "the model"),
    "layers": ('Layers(model, ["layer4.*"])', "the model"),
    "ssam-f": ("SSAMF(model, data)", "the model and the data set"),
    "ssam-d": ("SSAMD(total_steps)", "the number of steps"),
    "fsam": ("FSAM(model)", "the model"),
    "sl-sam": ("SLSAM(model)", "the model"),
    "adasap": ("AdaSAP(model)", "the model"),
}


def resolve(options: AscentOptions) -> Mask:
    """Return the mask of the options: of its name, or the object itself.

    Raises:
        InputError: the name is unknown, or its mask needs more than the options, or another ascent.
    """
    mask = options.mask if isinstance(options.mask, Mask) else _named(options)
    if mask.sam_only and options.ascent != "sam":
        raise InputError(f"mask: expected the ascent sam for {type(mask).__name__}, found {options.ascent}")
    return mask


def make(options: AscentOptions, model: nn.Module, data: Samples | None = None, total: int | None = None) -> Mask:
    """Return the mask of the options: of any name, or the object itself.

    Args:
        options: the name, and the mask's own options.
        model: the module that is trained.
        data: samples of the training set, which ssam-f needs. Default None.
        total: steps of the training, which ssam-d needs. Default None.

    Raises:
        InputError: as `resolve`, or the mask does not fit the model.
    """
    name, density, refresh = options.mask, options.mask_density, options.mask_refresh
    mask = name
    if name == "norm":
        mask = Norm(model)
    elif name == "ssam-f" and data is not None:
        mask = SSAMF(model, data, density=density, refresh=refresh or REFRESH_SSAM, pattern=options.mask_pattern)
    elif name == "ssam-d" and total is not None:
        mask = SSAMD(total, density, refresh or REFRESH_SSAM)
    elif name == "fsam":
        mask = FSAM(model, density, refresh or REFRESH)
    elif name == "sl-sam":
        mask = SLSAM(model, density)
    elif name == "adasap":
        mask = AdaSAP(model)
    return resolve(replace(options, mask=mask))


def _named(options: AscentOptions) -> Mask:
    """Return the mask of a name that needs no more than the options."""
    name = options.mask
    if name in _NEED:
        example, needs = _NEED[name]
        raise InputError(f"mask: expected lsam_hpc.optim.masks.{example}, because it needs {needs}, found {name!r}")
    if name == "random":
        return Random(options.mask_density, options.mask_refresh or REFRESH)
    if name == "tensors":
        return Tensors(options.mask_density)
    if name != "all":
        raise InputError(f"mask: expected {', '.join(MASKS)}, layers or a mask, found {name!r}")
    return Mask()
