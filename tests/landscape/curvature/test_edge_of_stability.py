"""The edge of stability on a run whose snapshots' sharpness is known, and its limits against SAM on a quadratic."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.landscape.curvature.directional import directional_sharpness
from lsam_hpc.landscape.curvature.edge_of_stability import Limits, edge, snapshots
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter
from tests.helpers.landscapes import quadratic
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
    config = {"momentum": 0.9, "ascent": "sam", "metric": "l2", "mask": "all"}
    (path / "config.json").write_text(json.dumps(config))
    for rank in range(2):
        with TrajectoryWriter(path, rank, [("w", (3,))], attributes(2), snapshots=Snapshots()) as writer:
            for i in range(8):
                writer.step(**{**step_row(i), "lr": 0.1 / (i + 1), "grad_norm": 2.0, "perturbation_norm": i})
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
    np.testing.assert_array_equal(result.ratio, [0, 1, 3.5] * 2)
    np.testing.assert_array_equal(result.logged.total_iteration, np.repeat(np.arange(0, 16, 2), 2))  # of both ranks
    np.testing.assert_allclose(result.logged.lr, np.repeat(0.1 / np.arange(1, 9), 2), rtol=1e-6)
    np.testing.assert_array_equal(result.logged.ratio, np.repeat(np.arange(8) / 2, 2))
    center = snapshots(run, "center")
    assert center == [(0, 0), (0, 1), (0, 2)]
    np.testing.assert_allclose(edge(run, f, center, "center").sharpness, 25, rtol=1e-5)


def test_directional_sharpness_of_updates_and_gradients(run):
    f = Objective(Quartic(), [(torch.zeros(4), torch.zeros(4))], lambda outputs, _: outputs.mean())
    result = edge(run, f, snapshots(run))
    # A rank moves along the second axis, from -i to its next value, where the curvature is i^2.
    np.testing.assert_allclose(result.update_sharpness, [0, 4, np.nan] * 2, rtol=1e-6)
    w = np.array([[1, i, rank] for rank in range(2) for i in (0, 2, 8)], np.float64)
    np.testing.assert_allclose(result.gradient_sharpness, (w**8).sum(1) / (w**6).sum(1), rtol=1e-5)
    still = edge(run, f, snapshots(run, "center"), "center")
    assert np.isnan(still.update_sharpness).all()
    np.testing.assert_allclose(still.gradient_sharpness, 25, rtol=1e-5)


def test_directional_sharpness_of_a_quadratic():
    f, h, c = quadratic()
    x, lr = np.arange(6.0), 0.01
    g = h @ (x - c)
    values, vectors = np.linalg.eigh(h)
    u = np.stack([-lr * g, vectors[:, -1], 3 * vectors[:, 0], np.ones(6), np.zeros(6), np.full(6, np.inf)])
    expected = [g @ h @ g / (g @ g), values[-1], values[0], h.sum() / 6, np.nan, np.nan]
    found = directional_sharpness(f, torch.from_numpy(x), torch.from_numpy(u))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # The loss after a step of gradient descent is that of the expansion of second order, which is exact here.
    after = f(torch.from_numpy(x - lr * g)).loss
    assert after == pytest.approx(f(torch.from_numpy(x)).loss - lr * g @ g + lr**2 / 2 * (g @ g) * found[0], rel=1e-12)
    with pytest.raises(InputError, match=r"directions: expected shape \(n, 6\), found \(6,\)"):
        directional_sharpness(f, torch.from_numpy(x), torch.ones(6))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("ratio", [0.0, 0.02, 3.0])
def test_sam_diverges_above_its_limit_and_converges_below(ratio, momentum):
    lr = 0.1
    limits = Limits(total_iteration=np.zeros(1), lr=np.array([lr]), ratio=np.array([ratio]), momentum=momentum)
    if ratio and not momentum:  # as the paper writes it
        paper = (np.sqrt(1 + 8 * ratio / lr) - 1) / (2 * ratio)
        assert limits.sam_limit[0] == pytest.approx(paper, rel=1e-12)
    for factor in (0.99, 1.01):
        curvature = factor * limits.sam_limit[0]
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def rho(step, x=x, curvature=curvature):  # keeps r = rho / |g| constant
            return ratio * curvature * abs(x.item())

        def closure(x=x, curvature=curvature):
            x.grad = curvature * x.detach()
            return 0.5 * curvature * (x.detach() ** 2).sum()

        opt = SAM(torch.optim.SGD([x], lr=lr, momentum=momentum), rho=rho, gamma=0.0)
        for _ in range(200):
            opt.step(closure)
        assert (abs(x.item()) > 1) == (factor > 1), (factor, x.item())


@pytest.mark.parametrize("option", [{"ascent": "gam"}, {"metric": "adaptive"}, {"mask": "norm"}, {"ascent": None}])
def test_other_ascents_have_no_limit_of_sam(run, option):
    (run.path / "config.json").write_text(json.dumps({**run.config, **option}))
    f = Objective(Quartic(), [(torch.zeros(4), torch.zeros(4))], lambda outputs, _: outputs.mean())
    result = edge(Run(run.path), f, [(0, 1)])
    assert np.isnan(result.sam_limit).all()
    assert np.isnan(result.logged.sam_limit).all()
    assert np.isfinite(result.momentum_limit).all()


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
