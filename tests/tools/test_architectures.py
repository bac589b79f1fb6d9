"""The programs on curvature with layers that lack forward-mode derivatives."""

import json
import sys

import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.landscape.formats.loss_landscape import read_surface
from lsam_hpc.trajectory import Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes, step_row
from tests.helpers.small_model import read

MODULE = """
import torch
from torch import nn

class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.lstm(x.flatten(1).view(-1, 4, 4))[0]
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.encoder(x).mean(1))

def images():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)
    )

def sequences():
    torch.manual_seed(0)
    return Sequence()

generator = torch.Generator().manual_seed(1)
DATA = [(torch.randn(20, 1, 4, 4, generator=generator), torch.randint(3, (20,), generator=generator)) for _ in "ab"]

def loader():
    return DATA
"""


@pytest.fixture(scope="module", params=["images", "sequences"])
def case(request, tmp_path_factory):
    """Return a run of one rank at a model's initial state, and its model and data as options."""
    folder = tmp_path_factory.mktemp("architectures")
    name = f"architectures_{request.param}"
    (folder / f"{name}.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    model = getattr(__import__(name), request.param)()
    layout = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    start = np.concatenate([p.detach().numpy().reshape(-1) for p in model.parameters()])
    path = folder / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({}))
    with TrajectoryWriter(path, 0, layout, attributes(1), snapshots=Snapshots()) as writer:
        for i in range(2):
            writer.step(**{**step_row(i), "lr": 0.1})
            for state in ("sample", "center"):
                writer.snapshot(state, start * (1 - 0.1 * i), i)
    yield path, ["--make-model", f"{name}:{request.param}", "--make-batches", f"{name}:loader"]
    sys.path.remove(str(folder))


def test_verbs(case, tmp_path, capsys):
    path, options = case
    common = [str(path), *options, "--out", str(tmp_path)]
    few = ["--kinds", "eigenvalues,trace", "--eigenvalues", "2", "--repeats", "2", "--products", "6"]
    assert main(["spectrum", *common, *few, "--along", "sample"]) == 0, capsys.readouterr().err
    grid = ["--x=-0.001:0.001:3", "--line"]
    assert main(["surface", *common, "--directions", "eigenvector", *grid, "--name", "s", "--double"]) == 0
    radii = ["--case", "worst", "--norm", "l2", "--rho", "0.01", "--m", "20", "--steps", "3"]
    assert main(["sharpness", *common, *radii]) == 0, capsys.readouterr().err
    rows = read(tmp_path / "spectrum-center-eigenvalues.csv")
    top = float(rows[0]["eigenvalue"])
    assert float(read(tmp_path / "spectrum-center-edge.csv")[-1]["sharpness"]) == pytest.approx(top, rel=1e-3)
    # The loss along the eigenvector has the eigenvalue as its second derivative, unless BatchNorm's statistics follow.
    low, middle, high = read_surface(tmp_path / "s.h5").values["train_loss"]
    if "sequences" in options[1]:
        assert (low + high - 2 * middle) / 1e-6 == pytest.approx(top, rel=0.01)
    assert low + high > 2 * middle
    assert all(float(row["sharpness"]) > 0 for row in read(tmp_path / "sharpness.csv"))
