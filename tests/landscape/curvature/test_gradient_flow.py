"""The gradient flow's solution and its sharpness against closed forms and scipy's integrator."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature.gradient_flow import gradient_flow
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import function, quadratic


def scalar_network():
    """Return f = (w1 w2 - 1)^2 / 2, whose flow keeps w1^2 - w2^2."""
    return function(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2, 2)


def of_solution(w1, w2):
    """Return w1^2 + w2^2 at the solution w1 w2 = 1 that the flow reaches."""
    return math.sqrt((w1**2 - w2**2) ** 2 + 4)


@pytest.mark.parametrize("start", [(3.0, 0.5), (5.0, 0.1), (-2.0, 0.3), (0.01, 0.011), (2.0, 0.5)])
def test_the_solution_of_a_scalar_network(start):
    x = torch.tensor(start, dtype=torch.float64)
    flow = gradient_flow(scalar_network(), x, tolerance=1e-5)
    assert flow.converged
    assert flow.sharpness == pytest.approx(of_solution(*start), rel=1e-4)
    assert float(flow.x.prod()) == pytest.approx(1, abs=1e-4)
    assert (np.diff(flow.losses) < 1e-12).all()
    assert (np.diff(flow.times) > 0).all()
    rough = gradient_flow(scalar_network(), x)
    assert rough.sharpness == pytest.approx(of_solution(*start), rel=0.01)
    assert rough.gradients <= flow.gradients
    assert torch.equal(x, torch.tensor(start, dtype=torch.float64))


def test_gradient_descent_lowers_the_solutions_sharpness():
    # Kreisler et al.: along gradient descent whose solution is above 2 / lr.
    f, x, lr = scalar_network(), torch.tensor([3.0, 0.5], dtype=torch.float64), 0.25
    found = []
    for _ in range(5):
        found.append(gradient_flow(f, x, tolerance=1e-5).sharpness)
        assert found[-1] == pytest.approx(of_solution(*x.tolist()), rel=1e-4)
        x = x - lr * f.gradient(x)[1]
    assert (np.diff(found) < 0).all()
    assert found[0] > 2 / lr


def test_a_stiff_and_singular_quadratic():
    h = torch.tensor([3e3, 30.0, 1.0, 0.0], dtype=torch.float64)
    f = function(lambda x: 0.5 * (x - 1) @ (h * (x - 1)), 4)
    start = torch.tensor([3.0, 2.0, 1.5, 7.0], dtype=torch.float64)
    flow = gradient_flow(f, start, tolerance=1e-5)
    assert flow.converged
    np.testing.assert_allclose(flow.x, [1, 1, 1, 7], atol=3e-4)
    assert flow.sharpness == pytest.approx(3e3)
    # An explicit method without many stages needs 3e3 * 20 / 3 steps.
    assert flow.gradients < 5000
    assert not gradient_flow(f, start, tolerance=1e-5, gradients=flow.gradients // 2).converged


def test_a_path_against_scipy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    f = Objective(model, [(x, y)], lambda outputs, targets: 0.5 * (outputs - targets).square().mean())
    flow = gradient_flow(f, f.start(), tolerance=1e-5)
    assert flow.converged
    assert flow.losses[-1] < 1e-6

    def slope(_, at):
        return -f.gradient(torch.from_numpy(at))[1].numpy()

    solved = solve_ivp(slope, (0, flow.times[-1]), f.start().numpy(), "LSODA", rtol=1e-7, atol=1e-8)
    assert np.linalg.norm(flow.x.numpy() - solved.y[:, -1]) < 3e-4 * np.linalg.norm(solved.y[:, -1])
    top = eigenpairs(f, torch.from_numpy(solved.y[:, -1].copy()), 1)[0][0]
    assert flow.sharpness == pytest.approx(top, rel=1e-3)


def test_a_flow_that_has_no_solution():
    f = function(lambda w: nn.functional.softplus(-w).sum(), 1)  # falls for ever
    assert not gradient_flow(f, torch.full((1,), 340.0, dtype=torch.float64)).converged  # until numbers overflow
    flow = gradient_flow(f, torch.ones(1, dtype=torch.float64), gradients=1500)
    assert not flow.converged
    assert math.isnan(flow.sharpness)
    assert flow.gradients <= 1500
    assert flow.losses[-1] < flow.losses[0]
    assert flow.losses[-1] < 1e-20
    assert flow.remaining == pytest.approx(1, rel=1e-3)  # the same at every time
    # Beside a long vector of other parameters this is a short path; but the gradient falls as 1 / t.
    beside = function(lambda w: nn.functional.softplus(-w[0]) + 0 * w[1], 2)
    assert not gradient_flow(beside, torch.tensor([1.0, 1e5], dtype=torch.float64), gradients=1000).converged


def test_a_stationary_point_is_its_own_solution():
    flow = gradient_flow(scalar_network(), torch.zeros(2, dtype=torch.float64))
    assert (flow.converged, flow.sharpness, flow.remaining) == (True, pytest.approx(1), 0)  # the saddle at 0


def test_bad_input():
    f, _, _ = quadratic()
    x = torch.ones(6, dtype=torch.float64)
    data = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    single = Objective(nn.Linear(3, 2), data)
    norm = Objective(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double(), [(data[0][0].double(), data[0][1])])
    for call, message in (
        (lambda: gradient_flow(f, x, gradients=0), "expected 1 gradient or more, found 0"),
        (lambda: gradient_flow(f, x, tolerance=0), "expected a tolerance between 0 and 1, found 0"),
        (lambda: gradient_flow(single, single.start()), "expected a model in float64, found torch.float32"),
        (lambda: gradient_flow(norm, norm.start()), "without running statistics, found BatchNorm1d"),
        (lambda: gradient_flow(f, x * torch.nan), "loss: expected a finite number at the given state, found nan"),
    ):
        with pytest.raises(InputError, match=message):
            call()
