"""CUDA and XPU by the same code: imitated modules of torch, because the tests run without either."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim import accelerators
from lsam_hpc.optim.random_state import repeating
from tests.helpers.mpis import ROOT


class Module:
    """torch.cuda or torch.xpu of a machine with two devices."""

    def __init__(self, **properties: Any) -> None:
        self.properties = properties
        self.state = 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def device_count(self) -> int:
        return 2

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(**{name: values[index] for name, values in self.properties.items()})

    def get_rng_state(self) -> int:
        return self.state

    def set_rng_state(self, state: int) -> None:
        self.state = state


@pytest.fixture
def xpu(monkeypatch: pytest.MonkeyPatch) -> Module:
    """A machine like Aurora, with XPU devices only; torch does not tell their PCI addresses."""
    module = Module(uuid=["a", "b"])
    monkeypatch.setattr(torch, "xpu", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return module


def test_auto_takes_xpu_devices(xpu: Module) -> None:
    assert accelerators.usable() == ["xpu"]
    assert accelerators.kind_of("auto") == accelerators.kind_of("xpu") == "xpu"
    assert accelerators.module_of(torch.device("xpu", 1)) is xpu
    assert accelerators.addresses("xpu") == ["", ""]
    assert accelerators.identities("xpu") == ["a", "b"]
    with pytest.raises(InputError, match=r"^--device: expected cpu or xpu, which torch can use here, found cuda$"):
        accelerators.kind_of("cuda")


def test_cuda_devices_have_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module(pci_domain_id=[0, 2], pci_bus_id=[0xC1, 3], pci_device_id=[0, 0x1F])
    monkeypatch.setattr(torch, "cuda", module)
    assert accelerators.addresses("cuda") == accelerators.identities("cuda") == ["0000:c1:00.0", "0002:03:1f.0"]
    assert accelerators.kind_of("auto") == "cuda"


def test_without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "usable", list)
    assert accelerators.kind_of("auto") == accelerators.kind_of("cpu") == "cpu"
    assert accelerators.addresses("cpu") == accelerators.identities("cpu") == []
    assert accelerators.module_of(torch.device("meta")) is None


def test_random_numbers_of_xpu_devices_are_repeated(xpu: Module) -> None:
    def draw() -> int:
        xpu.state += 1
        return xpu.state

    again = repeating(draw)
    assert [again(), again(), draw(), again()] == [1, 1, 2, 1]
    xpu.state = 7
    states = accelerators.rng_states()
    xpu.state = 8
    accelerators.set_rng_states({"torch": 1, **states})
    assert xpu.state == 7


def test_torch_xpu_has_every_function_that_is_used() -> None:
    names = "Stream Event stream current_stream synchronize set_device get_device_name is_available is_initialized"
    names += " device_count get_device_properties get_rng_state set_rng_state"
    for kind in accelerators.KINDS:
        assert not [name for name in names.split() if not hasattr(getattr(torch, kind), name)]
        assert hasattr(torch.profiler.ProfilerActivity, kind.upper())


def test_only_one_module_knows_the_kinds_of_devices() -> None:
    """Code that names torch.cuda would leave XPU devices out."""
    files = [*(ROOT / "lsam_hpc").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    known = {ROOT / "lsam_hpc" / "optim" / "accelerators.py"}
    pattern = re.compile(r"torch\.(cuda|xpu)\.|\bis_cuda\b|type == .cuda")
    assert len(files) > 200
    assert [str(file) for file in files if file not in known and pattern.search(file.read_text())] == []
