"""A model of 52 parameters, its data, and a run of it with snapshots, for tests of the programs on curvature."""

import csv
import json
import sys

import numpy as np
import pytest

from lsam_hpc.trajectory import Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes, step_row

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))

def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(20, 3, generator=generator), torch.randint(4, (20,), generator=generator)) for _ in "ab"]

DATA = data()

def loader():
    return DATA

def product(outputs, targets):
    # (w1 w2 - 1)^2 / 2 for the model Scalar
    return 0.5 * (outputs - 1).square().mean()

class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.w.prod().expand(len(x))

def nothing():
    return []
"""
LAYOUT = [("0.weight", (6, 3)), ("0.bias", (6,)), ("2.weight", (4, 6)), ("2.bias", (4,))]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Return a run of two ranks with snapshots, and its model and data as options."""
    folder = tmp_path_factory.mktemp("spectrum")
    (folder / "spectrum_model.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    path = folder / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"momentum": 0.5}))
    states = np.random.default_rng(0).standard_normal((2, 3, 52)).astype(np.float32)
    for rank in range(2):
        with TrajectoryWriter(path, rank, LAYOUT, attributes(2), snapshots=Snapshots()) as writer:
            for i in range(3):
                writer.step(**{**step_row(i), "lr": 0.1})
                writer.snapshot("sample", states[rank, i], i)
                writer.snapshot("center", states[0, i] / 2, i)
    yield path, ["--make-model", "spectrum_model:model", "--make-batches", "spectrum_model:loader"], states
    sys.path.remove(str(folder))


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))
