"""The passes of `lsam train` on a GPU: the images' random changes, bfloat16, channels last, no wait in a step."""

import pytest
import torch

from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.train.augment import Augment
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.dataset import Images
from lsam_hpc.train.losses import batch_loss
from lsam_hpc.train.models import build
from lsam_hpc.train.step_numbers import StepNumbers
from lsam_hpc.trajectory import Run
from tests.helpers.mpis import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPE = (3, 32, 32)


def stream(device, *, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (512, *SHAPE), dtype=torch.uint8, generator=generator)
    images = Images(stored, torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 60.0)).to(torch.device(device))
    labels = torch.randint(10, (512,), generator=generator).to(device)
    augment = Augment(32, 32, 4, mirror=True, cutout=8)
    return Batches(images, labels, 64, 3, augment, channels_last=channels_last)


def test_images_are_changed_as_on_the_cpu():
    on_host, on_device = stream("cpu"), stream("cuda", channels_last=True)
    for _ in range(10):
        (x, y), (device_x, device_y) = next(on_host), next(on_device)
        assert device_x.is_cuda
        assert device_x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(device_x.cpu().contiguous(), x, rtol=1e-6, atol=1e-6)
        assert torch.equal(device_y.cpu(), y)


def chain(*, channels_last, device="cuda"):
    torch.manual_seed(0)
    model = build("resnet18", "cifar10", SHAPE, 10).to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    statistics = [b.reshape(-1) for name, b in model.named_buffers() if "running" in name]
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    center = LocalCenter(torch.cat([vector, *statistics]).cpu())
    return model, LocalLSAM(base, center, rho=0.1, pull=0.5, period=1000, model=model)


def step(model, opt, batch, *, bf16):
    def closure():
        opt.zero_grad()
        loss = batch_loss(model, batch, bf16=bf16)
        loss.backward()
        return loss

    return opt.step(closure)


def test_bf16_and_channels_last_train_as_float32():
    losses = {}
    for bf16 in (False, True):
        model, opt = chain(channels_last=bf16)
        batches = stream("cuda", channels_last=bf16)
        losses[bf16] = torch.stack([step(model, opt, next(batches), bf16=bf16).detach() for _ in range(4)])
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.02)


def test_steps_do_not_wait_for_the_gpu():
    """torch raises in a call that would wait; reading a step's numbers waits for the step before only."""
    model, opt = chain(channels_last=True)
    batches = stream("cuda", channels_last=True)
    received = []
    numbers = StepNumbers(torch.device("cuda"), lambda known, values: received.append((known, values)))
    for _ in range(3):  # cuDNN and the allocator wait in the first steps
        step(model, opt, next(batches), bf16=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(4):
            loss = step(model, opt, next(batches), bf16=True)
            numbers.add(number, [loss, opt.grad_norm, opt.perturbation_norm])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    numbers.flush()
    assert [known for known, _ in received] == list(range(4))
    assert all(value == value and value > 0 for _, values in received for value in values)


def test_a_sharded_job_resumes(mpi, tmp_path):
    """cnn-tiny: its BatchNorm statistics are not sharded."""
    words = ["--device", "cuda", "--shard", "fsdp2", "--model", "cnn-tiny", "--out", str(tmp_path / "run")]
    for steps in ("20", "40"):
        train = ["-m", "lsam_hpc", "train", *words, "--resume", "auto", "--steps", steps]
        done = run(mpi.command(1, mpi.python, *train), 240)
        assert done.returncode == 0, done.stderr
    assert [*Run(tmp_path / "run").steps(0)["iteration"]] == [*range(40)]
