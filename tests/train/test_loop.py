"""The parts of the loop that need no MPI job."""

import math

import numpy as np
import pytest
import torch

from lsam_hpc.errors import InputError
from lsam_hpc.train import batches, job
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import lr_factor
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.dataset import of_arrays
from lsam_hpc.train.evaluation import evaluate
from lsam_hpc.train.models import MODELS


@pytest.mark.parametrize(("name", "count"), [("mlp", 118_282), ("cnn", 57_130), ("resnet18", 11_173_962)])
def test_models_have_their_known_size(name, count):
    # ResNet-18 for CIFAR has 11,173,962 parameters in every published implementation.
    shape = (1, 28, 28) if name == "mlp" else (3, 32, 32)
    model = MODELS[name](shape, 10)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_learning_rate_rises_and_falls_as_a_cosine():
    config = TrainConfig(warmup=0.1)
    factors = [lr_factor(config, step, 1000) for step in range(1000)]
    assert factors[:100] == sorted(factors[:100])
    assert factors[0] == pytest.approx(1 / 101)
    assert factors[100] == 1
    assert factors[550] == pytest.approx(0.5)
    assert factors[999] == pytest.approx(0.5 * (1 + math.cos(math.pi * 899 / 900)))
    assert lr_factor(TrainConfig(warmup=0.0, lr_schedule="constant"), 500, 1000) == 1


def test_each_rank_sees_the_whole_set_in_its_own_order():
    images = torch.arange(10.0)[:, None]
    first, second, again = (Batches(images, torch.arange(10), 3, seed) for seed in (0, 1, 0))
    passes = [
        [torch.cat([next(source)[1] for _ in range(3)]).tolist() for _ in range(4)] for source in (first, second, again)
    ]
    assert passes[0] == passes[2]
    assert passes[0] != passes[1]
    for order in passes[0]:  # three batches of three of ten: nothing comes twice in a pass
        assert len(set(order)) == 9
    assert len({tuple(order) for order in passes[0]}) == 4
    x, y = next(first)
    assert torch.equal(x[:, 0], y.float())
    assert torch.equal(first.ids, y)  # the labels are the indices here


@pytest.mark.parametrize("elements", [1, 100, 10**6])
def test_mini_batches_are_those_of_the_order_however_many_are_read_at_once(monkeypatch, elements):
    monkeypatch.setattr(batches, "BLOCK", elements)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (50, 2, 4, 4), np.uint8), np.arange(50) % 10
    data = of_arrays((images, labels), (images, labels))
    source, generator = Batches(data.train_x, data.train_y, 7, 3), torch.Generator().manual_seed(3)
    values = torch.from_numpy(images).double()
    mean, deviation = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True, correction=0)
    for _ in range(3):
        for ids in torch.randperm(50, generator=generator).split(7)[:7]:
            x, y = next(source)
            assert torch.equal(source.ids, ids)
            assert torch.equal(y, data.train_y[ids])
            torch.testing.assert_close(x, ((values - mean) / deviation)[ids].float())
            x.mul_(torch.ones(1, requires_grad=True))  # a model may change its input


def test_evaluate_counts_errors_and_keeps_the_mode():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
    x = torch.eye(4).repeat(300, 1)[:, :, None, None]
    y = torch.arange(4).repeat(300)
    y[:12] = (y[:12] + 1) % 4
    loss, error = evaluate(model, x, y)
    assert error == 100 * 12 / 1200
    right, wrong = math.log(math.e + 3) - 1, math.log(math.e + 3)
    assert loss == pytest.approx((1188 * right + 12 * wrong) / 1200, rel=1e-5)
    assert model.training


@pytest.mark.parametrize(
    ("reduce", "device", "error", "message"),
    [
        ("auto", "cpu", ModuleNotFoundError("no horovod"), None),
        ("auto", "xpu", AssertionError("only Intel's Horovod knows its tensors"), None),
        ("horovod", "xpu", ModuleNotFoundError("no horovod"), "--reduce horovod: expected Horovod"),
        (
            "auto",
            "cuda",
            ImportError("undefined symbol"),
            "--reduce: expected a Horovod that can be loaded, or mpi, found: undef",
        ),
        ("horovod", "cpu", ModuleNotFoundError("no horovod"), "--reduce horovod: expected Horovod"),
        ("mpi", "cpu", AssertionError("mpi needs none"), None),
    ],
)
def test_a_missing_horovod_is_ignored_and_a_broken_one_reported(monkeypatch, reduce, device, error, message):
    def load(name):
        raise error

    monkeypatch.setattr(job.importlib, "import_module", load)
    config = TrainConfig(group_size=2, reduce=reduce)
    if message is None:
        job.start_averaging(config, torch.device(device))
    else:
        with pytest.raises(InputError, match=message):
            job.start_averaging(config, torch.device(device))
