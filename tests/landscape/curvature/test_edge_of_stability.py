"""The edge of stability on a run whose snapshots' sharpness is known."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature.edge_of_stability import edge, snapshots
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes, make_run, step_row


class Quartic(nn.Module):
    """f(w) = sum w^4 / 12: the Hessian is diag(w^2)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (self.w**4).sum() / 12 + 0 * x


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"momentum": 0.9}))
    for rank in range(2):
        with TrajectoryWriter(path, rank, [("w", (3,))], attributes(2), snapshots=Snapshots()) as writer:
            for i in range(8):
                writer.step(**{**step_row(i), "lr": 0.1 / (i + 1)})
            for i in (0, 2, 8):
                writer.snapshot("sample", np.array([1, -i, rank], np.float32), i)
                writer.snapshot("center", np.array([5, 0, 0], np.float32), i)
    return Run(path)


def test_sharpness_and_limits(run):
    f = Objective(Quartic(), [(torch.zeros(4), torch.zeros(4))], lambda outputs, _: outputs.mean())
    rows = snapshots(run)
    assert rows == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    result = edge(run, f, rows)
    np.testing.assert_array_equal(result.rank, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(result.iteration, [0, 2, 8] * 2)
    np.testing.assert_allclose(result.sharpness, [1, 4, 64] * 2, rtol=1e-5)
    np.testing.assert_array_equal(result.total_iteration, [0, 4, 14] * 2)  # after the last step: that step's
    np.testing.assert_allclose(result.lr, [0.1, 0.1 / 3, 0.1 / 8] * 2, rtol=1e-6)
    np.testing.assert_allclose(result.limit, [20, 60, 160] * 2, rtol=1e-6)
    np.testing.assert_allclose(result.momentum_limit, 1.9 * result.limit)
    center = snapshots(run, "center")
    assert center == [(0, 0), (0, 1), (0, 2)]
    np.testing.assert_allclose(edge(run, f, center, "center").sharpness, 25, rtol=1e-5)


def test_a_diverged_snapshot_is_named(run):
    broken = Objective(Quartic(), [(torch.full((4,), torch.nan), torch.zeros(4))], lambda outputs, _: outputs.mean())
    with pytest.raises(InputError, match="run: sample of rank 1 at step 2: loss: expected a finite number"):
        edge(run, broken, [(1, 1)])


def test_a_run_without_snapshots(tmp_path):
    run = Run(make_run(tmp_path / "bare"))
    with pytest.raises(
        InputError, match="expected snapshots of the sample, found none: train with --snapshot-every log"
    ):
        snapshots(run)
