"""torch's accelerators: CUDA, which also stands for ROCm, and XPU. Their modules have the same functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.errors import InputError

KINDS = ("cuda", "xpu")  # types of their devices, and the names of torch's modules


def module_of(device: torch.device) -> Any | None:  # noqa: ANN401 - a module
    """Return torch.cuda or torch.xpu for a device of theirs; None for other devices."""
    return getattr(torch, device.type) if device.type in KINDS else None


def kind_of(name: str) -> str:
    """Return the type of device that a value of --device stands for: cpu, cuda or xpu.

    Args:
        name: auto (an accelerator if torch can use one here), cpu, cuda or xpu.

    Raises:
        InputError: torch cannot use that device here.
    """
    kinds = ["cpu", *usable()]
    if name == "auto":
        return kinds[1] if len(kinds) > 1 else "cpu"
    if name not in kinds:
        raise InputError(f"--device: expected {' or '.join(kinds)}, which torch can use here, found {name}")
    return name


def addresses(kind: str) -> list[str]:
    """Return the PCI address of each device of a type that this process sees; "" where torch does not tell it."""
    return [_address(properties) for properties in _properties(kind)]


def identities(kind: str) -> list[str]:
    """Return a text for each device of a type that this process sees, unlike that of any other device of the node."""
    texts = [str(getattr(properties, "uuid", "")) or _address(properties) for properties in _properties(kind)]
    return [text or f"{kind}:{index}" for index, text in enumerate(texts)]


def usable() -> list[str]:
    """Return the types of device that this torch can use on this machine, besides the CPU."""
    return [kind for kind in KINDS if getattr(torch, kind).is_available()]


def rng_states() -> dict[str, Tensor]:
    """Return the state of the present device's random numbers, for each type of device that is in use."""
    modules = {kind: getattr(torch, kind) for kind in KINDS}
    return {kind: module.get_rng_state() for kind, module in modules.items() if module.is_initialized()}


def set_rng_states(states: Mapping[str, Any]) -> None:
    """Restore what `rng_states` returned; types that this machine lacks are left out, other keys are ignored."""
    for kind in usable():
        if kind in states:
            getattr(torch, kind).set_rng_state(states[kind])


@contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """Restore the random numbers of the CPU and a device after the body."""
    if module_of(device) is None:
        with torch.random.fork_rng([]):
            yield
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield


def _properties(kind: str) -> list[object]:
    module = module_of(torch.device(kind))
    return [] if module is None else [module.get_device_properties(i) for i in range(module.device_count())]


def _address(properties: object) -> str:
    """Return domain:bus:device.function; XPU devices and old versions of torch do not tell it."""
    if not hasattr(properties, "pci_bus_id"):
        return ""
    numbers = (int(getattr(properties, f"pci_{part}_id")) for part in ("domain", "bus", "device"))
    return "{:04x}:{:02x}:{:02x}.0".format(*numbers)
