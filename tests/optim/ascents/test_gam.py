"""GAM against a transcription of the authors' program, on flat vectors."""

import pytest
import torch

from lsam_hpc import SAM
from tests.helpers.problems import batches, closure_of, flat, gradient, network

LR, RHO, NORM_RHO, GAMMA = 0.2, 0.05, 0.3, 1e-12


def official(model, x, batch, *, adaptive, beta1, beta2, gamma):
    """Return the vector that the authors' program descends along."""

    def move(at, g, radius):
        if adaptive:
            return at + radius / ((g * at.abs()).norm() + GAMMA) * g * at**2
        return at + radius / (g.norm() + GAMMA) * g

    g0 = gradient(model, x, *batch)
    g1 = gradient(model, move(x, g0, RHO), *batch)
    x1 = move(x, g1 - g0, NORM_RHO)
    g2 = gradient(model, x1, *batch)
    g3 = gradient(model, move(x1, g2, RHO), *batch)
    decomposed, descent = g0 + abs(beta2) * g2, beta1 * g1 + (1 - beta1) * g3
    cosine = decomposed @ descent / (descent.norm() * decomposed.norm() + GAMMA)
    vertical = decomposed - cosine * decomposed.norm() * descent / (descent.norm() + GAMMA)
    return descent - gamma * vertical


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("weights", [(0.6, 0.5, 0.03), (0.1, 0.9, 0.5)])
def test_equals_the_authors_program(adaptive, weights):
    model = network()
    beta1, beta2, gamma = weights
    opt = SAM(
        torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9),
        RHO,
        GAMMA,
        ascent="gam",
        metric="adaptive" if adaptive else "l2",
        eta=0.0,
        norm_rho=NORM_RHO,
        gam_beta1=beta1,
        gam_beta2=beta2,
        gam_gamma=gamma,
    )
    buffer = None
    for batch in batches(12):
        x = flat(model)
        d = official(model, x, batch, adaptive=adaptive, beta1=beta1, beta2=beta2, gamma=gamma)
        buffer = d if buffer is None else 0.9 * buffer + d
        opt.step(closure_of(model, opt, *batch))
        torch.testing.assert_close(flat(model), x - LR * buffer, rtol=0, atol=1e-12)


def test_reports_the_norm_of_the_whole_move():
    model, seen = network(), []
    model.register_forward_pre_hook(lambda *_: seen.append(flat(model)))
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, ascent="gam", norm_rho=NORM_RHO)
    x = flat(model)
    opt.step(closure_of(model, opt, *next(batches(1))))
    assert len(seen) == 4
    torch.testing.assert_close(opt.perturbation_norm, (seen[3] - x).norm(), rtol=1e-12, atol=0)


def test_a_parameter_without_a_gradient_in_some_passes_is_left_out():
    # Many small tensors, whose norm is computed on their concatenation; two are not used in the last two passes.
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(100)]
    opt, passes = SAM(torch.optim.SGD(params, lr=LR), RHO, ascent="gam", norm_rho=NORM_RHO), []

    def closure():
        passes.append(1)
        opt.zero_grad()
        used = params if len(passes) <= 2 else params[:98]
        loss = sum((p**2).sum() for p in used)
        loss.backward()
        return loss

    before = [p.detach().clone() for p in params]
    opt.step(closure)
    # The gradient of sum x^2 is 2 x: without the two, all passes would point the same way, to distance rho' + rho.
    assert NORM_RHO + 0.9 * RHO < opt.perturbation_norm < NORM_RHO + RHO
    assert all(torch.equal(p, x) for p, x in zip(params[98:], before[98:], strict=True))
    assert not torch.equal(params[0], before[0])
