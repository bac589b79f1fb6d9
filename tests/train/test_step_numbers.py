"""The numbers of a step are read one step late on GPUs: the order of the calls, with an imitated module of torch."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lsam_hpc.optim import perturbation
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.optim.sam import SAM
from lsam_hpc.train import step_numbers
from lsam_hpc.train.augment import Augment
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.dataset import Images
from lsam_hpc.train.models import build
from lsam_hpc.train.step_numbers import StepNumbers


class Received:
    def __init__(self) -> None:
        self.steps: list[tuple[int, list[float]]] = []

    def __call__(self, known: int, numbers: list[float]) -> None:
        self.steps.append((known, numbers))


def test_on_the_cpu_they_are_passed_on_at_once() -> None:
    received = Received()
    numbers: StepNumbers[int] = StepNumbers(torch.device("cpu"), received)
    for step in range(3):
        numbers.add(step, [torch.tensor(step / 3, dtype=torch.float64), torch.tensor(float(step))])
        assert received.steps[-1] == (step, [step / 3, float(step)])
    numbers.flush()
    assert len(received.steps) == 3


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Imitate CUDA on the CPU; return the numbers of the events that the host has waited for."""
    waited: list[int] = []
    made: list[object] = []

    class Event:
        def __init__(self) -> None:
            made.append(self)
            self.number, self.recorded = len(made) - 1, False

        def record(self) -> None:
            self.recorded = True

        def synchronize(self) -> None:
            assert self.recorded
            waited.append(self.number)

    empty = torch.empty
    monkeypatch.setattr(step_numbers, "module_of", lambda _: SimpleNamespace(Event=Event))
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))
    return waited


def test_on_a_gpu_the_host_waits_for_the_step_before_only(waits: list[int]) -> None:
    received = Received()
    numbers: StepNumbers[int] = StepNumbers(torch.device("cuda"), received)
    for step in range(4):
        loss = torch.tensor(float(step), requires_grad=True)
        numbers.add(step, [loss, torch.tensor(float("nan"))])
        loss.data.fill_(-1.0)  # what the next step does to it
        assert waits == list(range(step))
        assert [known for known, _ in received.steps] == list(range(step))
    numbers.flush()
    numbers.flush()
    assert waits == [0, 1, 2, 3]
    assert [(known, values[0]) for known, values in received.steps] == [(step, float(step)) for step in range(4)]


def test_a_step_reads_no_number_of_the_device() -> None:
    """Tensors on meta have no values: whoever reads one, or waits for it, gets an exception."""
    meta = torch.device("meta")
    images = Images(torch.zeros(64, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)).to(meta)
    labels = torch.zeros(64, dtype=torch.int64, device=meta)
    augment = Augment(16, 16, 2, mirror=True, cutout=4)
    batches = Batches(images, labels, 24, 0, augment, channels_last=True)
    model: Any = build("resnet18", "cifar10", (3, 16, 16), 10).to(meta).to(memory_format=torch.channels_last)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4), rho=0.1, model=model)
    with pytest.raises(RuntimeError):
        labels.sum().item()
    for _ in range(4):  # two passes over the images
        x, y = next(batches)
        assert x.device == meta
        assert x.is_contiguous(memory_format=torch.channels_last)

        def closure() -> torch.Tensor:
            opt.zero_grad()
            loss = functional.cross_entropy(model(x), y)  # noqa: B023 - called in this step
            loss.backward()
            return loss

        opt.step(closure)
    assert opt.local_step == 4


class Reads(TorchDispatchMode):
    """Counts the operators that wait for a GPU where tensors are on one."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAIT:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("ascent", "rho", "reads"), [("sam", 0.1, 1), ("sam", 0.0, 0), ("dp-sat", 0.1, 1)])
def test_a_step_of_lsam_reads_the_scale_of_the_ascent_only_and_that_on_the_cpu_only(
    ascent: Any, rho: float, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(6, 3)
    size = sum(p.numel() for p in model.parameters())
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    opt = LocalLSAM(base, LocalCenter(torch.zeros(size)), rho=rho, ascent=ascent, period=1000, temperature=0.0)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = model(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    opt.step(closure)
    for on_gpu in (False, True):
        if on_gpu:  # as on a GPU the scale is multiplied, not read
            move = lambda xs, ds, scale: torch._foreach_add_(xs, torch._foreach_mul(ds, scale))  # noqa: E731
            monkeypatch.setattr(perturbation, "add_scaled_", move)
        with Reads() as mode:
            for _ in range(3):
                opt.step(closure)
        assert mode.counted == ({} if on_gpu or not reads else {"_local_scalar_dense": 3 * reads})
