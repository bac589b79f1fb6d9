"""The distribution that LSAM's chains sample, against numerical quadrature.

The laws: q(x|y) ~ exp(-(u(x) + lambda/2 |x - y|^2) / T) in one and in five dimensions. u is f_SAM where f_SAM is
continuous (the bowl). At the critical points of an asymmetric double well f_SAM jumps; there u is the potential whose
gradient the steps follow: f_SAM with the jumps removed.

Error level: N independent chains give N averages, whose spread gives the standard error. A mean must be within 4
standard errors, and the p-value of a histogram's Hotelling T^2 above that of 4 sigma, 6.3e-5. Seeds are fixed.
"""

import math

import numpy as np
import pytest
import scipy  # it imports its subpackages at first use
import torch
from torch import nn

from lsam_hpc.optim import LocalCenter, LocalLSAM
from tests.helpers.quadrature import (
    Bowl,
    Replicas,
    Well,
    ascended,
    ball_law,
    descended,
    estimate,
    f_sam,
    fixed,
    jumps,
    line_law,
)

SIGMAS = 4.0
P_VALUE = math.erfc(SIGMAS / math.sqrt(2))
WELL, BOWL = Well(), Bowl()
RHO, STIFFNESS, T = 0.3, 1.0, 0.4
EDGES = np.array([-4.0, *np.linspace(-1.0, 1.2, 12), 4.0])
OFF_AXIS = np.array([0.6, 0.0, -0.8, 0.0, 0.0])  # length 1


def slope_of(f, rho=RHO):
    """Return f'(x + e(x)), the gradient that the steps use."""
    return lambda x: f.gradient(ascended(f, x, rho))


def sigmas(samples, expected):
    """Return the distance of the mean of samples (times, chains) from `expected`, in standard errors."""
    mean, error = estimate(samples.mean(axis=0))
    return (mean - expected) / error


def histogram_p(samples, edges, expected):
    """Return the p-value of Hotelling's T^2 of the chains' histograms against the bins' probabilities."""
    times, chains = samples.shape
    which = np.searchsorted(edges, samples, side="right") - 1
    counts = np.bincount((which + np.arange(chains) * (edges.size - 1)).ravel(), minlength=chains * (edges.size - 1))
    # Without the last bin, which the others determine.
    shares = counts.reshape(chains, -1)[:, :-1] / times
    gap = shares.mean(axis=0) - expected[:-1]
    t2 = chains * gap @ np.linalg.solve(np.cov(shares.T), gap)
    free = gap.size
    return scipy.stats.f.sf(t2 * (chains - free) / (free * (chains - 1)), free, chains - free)


def agreement(law, y, samples, edges=EDGES):
    """Return the sigmas of the mean (and so of the score) and of the variance, and the histogram's p-value."""
    mean = law.mean(y)
    spread = sigmas((samples - mean) ** 2, law.variance(y))
    return sigmas(samples, mean), spread, histogram_p(samples, edges, law.bins(y, edges))


def agrees(law, y, samples):
    mean, spread, p = agreement(law, y, samples)
    return abs(mean) < SIGMAS and abs(spread) < SIGMAS and p > P_VALUE


def laws():
    return {
        "well": line_law(WELL, RHO, STIFFNESS, T),
        "well, f_SAM": line_law(WELL, RHO, STIFFNESS, T, jumping=True),
        "bowl": line_law(BOWL, 0.5, STIFFNESS, T, reach=6.0),
        "5-d bowl": ball_law(BOWL, 5, 0.5, STIFFNESS, T),
    }


@pytest.mark.parametrize("name", laws())
@pytest.mark.parametrize("y", [-0.8, 0.0, 0.3, 1.5])
def test_the_score_is_the_derivative_of_the_free_energy(name, y):
    law, h = laws()[name], 1e-4
    difference = (law.free_energy(y + h) - law.free_energy(y - h)) / (2 * h)
    assert law.score(y) == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_quadrature_of_the_line_agrees_with_scipy(rho):
    y, law = 0.4, line_law(WELL, rho, STIFFNESS, T, jumping=True)

    def weight(x):
        return math.exp(-(f_sam(WELL, np.float64(x), rho) + STIFFNESS / 2 * (x - y) ** 2) / T)

    options = {"points": WELL.critical(), "epsabs": 1e-12, "limit": 200}
    mass = scipy.integrate.quad(weight, -4, 4, **options)[0]
    mean = scipy.integrate.quad(lambda x: x * weight(x), -4, 4, **options)[0] / mass
    assert law.free_energy(y) == pytest.approx(-T * math.log(mass), abs=1e-9)
    assert law.mean(y) == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("dimension", [2, 5])
def test_the_quadrature_of_the_ball_agrees_with_the_radial_integral_at_y_0(dimension):
    law = ball_law(BOWL, dimension, 0.5, STIFFNESS, T)

    def weight(r):
        return r ** (dimension - 1) * math.exp(-(0.5 * (r + 0.5) ** 2 + STIFFNESS / 2 * r * r) / T)

    square = scipy.integrate.quad(lambda r: r * r * weight(r), 0, 8)[0] / scipy.integrate.quad(weight, 0, 8)[0]
    assert law.mean(0.0) == pytest.approx(0, abs=1e-9)
    assert law.variance(0.0) == pytest.approx(square / dimension, abs=1e-9)


def test_the_quadrature_agrees_with_the_closed_form_without_ascent():
    a, stiffness, y = 2.0, 0.5, 0.7
    for law in (line_law(Bowl(a), 0.0, stiffness, T), ball_law(Bowl(a), 5, 0.0, stiffness, T)):
        assert law.mean(y) == pytest.approx(stiffness * y / (a + stiffness), abs=1e-9)
        assert law.variance(y) == pytest.approx(T / (a + stiffness), abs=1e-9)
        smoothed = a * stiffness / (a + stiffness) / 2 * y**2
        assert law.free_energy(y) - law.free_energy(0.0) == pytest.approx(smoothed, abs=1e-9)


def test_the_law_of_finite_steps_agrees_with_the_closed_form_without_ascent():
    a, lr, y = 2.0, 0.05, 0.7
    stepped = line_law(Bowl(a), 0.0, STIFFNESS, T).stepped(y, lr, slope_of(Bowl(a), 0.0))
    rate = a + STIFFNESS
    assert stepped.mean(y) == pytest.approx(STIFFNESS * y / rate, abs=1e-9)
    assert stepped.variance(y) == pytest.approx(T / rate / (1 - lr * rate / 2), abs=1e-9)


@pytest.mark.parametrize("start", [-1.4, -0.9, -0.3, 0.2, 0.8, 1.3])
def test_the_step_follows_the_gradient_of_f_sam_in_the_well(start):
    h = 1e-5
    slope = np.diff(f_sam(WELL, np.array([start - h, start + h]), RHO)).item() / (2 * h)
    assert np.diff(descended(WELL, np.array([start - h, start + h]), RHO)).item() / (2 * h) == pytest.approx(slope)
    assert moved(WELL, np.array([start]), RHO) == pytest.approx(slope, abs=1e-6)


def test_the_step_follows_the_gradient_of_f_sam_in_the_bowl():
    start, rho, a = np.array([0.3, -0.2, 0.5, 0.1, -0.7]), 0.5, 2.0
    # The gradient of a/2 (|x| + rho)^2.
    length = np.linalg.norm(start)
    np.testing.assert_allclose(moved(Bowl(a), start, rho), a * (length + rho) * start / length, rtol=0, atol=1e-9)


def moved(f, start, rho):
    """Return the gradient of one LSAM step without noise and force."""
    lr = 0.01
    x, opt, closure = plain(f, start, start, lr, rho, stiffness=0.0)
    opt.step(closure)
    return (start - x.detach().numpy()) / lr


def plain(f, start, y, lr, rho, **options):
    """Return one chain in user code: a parameter, LocalLSAM, and a closure with autograd."""
    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    center = LocalCenter(torch.tensor(y, dtype=torch.float64))
    options = {"pull": 0.0, "period": 2**62} | options
    opt = LocalLSAM(torch.optim.SGD([x], lr=lr), center, rho, coupling="kernel", **options)

    def closure():
        opt.zero_grad()
        loss = (f.height * (x * x - 1) ** 2 + f.tilt * x if isinstance(f, Well) else f.a / 2 * x * x).sum()
        loss.backward()
        return loss

    return x, opt, closure


def test_f_sam_jumps_at_critical_points_of_the_well_and_the_potential_of_the_steps_does_not():
    h = 1e-9
    expected = jumps(WELL, RHO)
    for point, jump in zip(WELL.critical(), expected, strict=True):
        around = np.array([point - h, point + h])
        assert np.diff(f_sam(WELL, around, RHO)).item() == pytest.approx(jump, abs=1e-6)
        assert np.diff(descended(WELL, around, RHO)).item() == pytest.approx(0, abs=1e-6)
    # The largest jump exceeds half of T, so chains can tell the laws apart. At a minimum of f it is rho^3 f'''/3.
    assert np.abs(expected).max() > 0.5 * T
    np.testing.assert_allclose(expected, RHO**3 / 3 * 24 * WELL.critical() * [1, -1, 1], rtol=1e-9)
    assert jumps(BOWL, RHO) == pytest.approx(0)


def test_replicas_equal_separate_chains():
    starts, y = np.array([[0.3, -0.2], [1.0, 2.0], [-0.1, 0.4]]), np.array([0.5, -0.5])
    for f in (WELL, BOWL):
        center = LocalCenter(torch.tensor(y).repeat(3))
        options = {"stiffness": 0.7, "pull": 0.1, "period": 3}
        together = Replicas(f.gradient, torch.tensor(starts), center, 0.05, RHO, **options)
        alone = [plain(f, start, y, 0.05, RHO, **options) for start in starts]
        for _ in range(40):
            together.step()
            for _, opt, closure in alone:
                opt.step(closure)
            np.testing.assert_allclose(
                together.x.detach(), np.stack([x.detach() for x, _, _ in alone]), rtol=0, atol=1e-9
            )


def test_a_replica_with_noise_equals_a_chain_with_noise():
    options = {"stiffness": 0.7, "temperature": T, "seed": 3}
    center = LocalCenter(torch.zeros(5, dtype=torch.float64))
    start = np.full(5, 0.4)
    row = Replicas(BOWL.gradient, torch.tensor(start)[None], center, 0.05, RHO, pull=0.0, **options)
    x, opt, closure = plain(BOWL, start, np.zeros(5), 0.05, RHO, **options)
    for _ in range(40):
        row.step()
        opt.step(closure)
    np.testing.assert_allclose(row.x.detach()[0], x.detach(), rtol=0, atol=1e-9)


def test_steps_without_ascent_have_the_known_variance_at_a_large_lr():
    # The variance of x <- (1 - lr (a + lambda)) x + sqrt(2 lr T) N, exactly: 1/4 more than T / (a + lambda).
    lr, rate, y = 0.2, BOWL.a + STIFFNESS, np.array([0.5])
    chains = fixed(BOWL, y, 512, lr, 0.0, STIFFNESS, T, seed=1)
    chains.record(1, 200)
    samples = chains.record(4000, 1)[:, :, 0]
    mean = STIFFNESS * y[0] / rate
    variance = T / rate / (1 - lr * rate / 2)
    assert abs(sigmas(samples, mean)) < SIGMAS
    assert abs(sigmas((samples - mean) ** 2, variance)) < SIGMAS
    # With 2 million correlated samples the error is 0.1 %, so T / (a + lambda), a fifth too small, is off by 150 sigma.
    assert abs(sigmas((samples - mean) ** 2, T / rate)) > 100


@pytest.mark.parametrize("y", [-0.5, 0.7])
def test_steps_in_the_well_have_the_law_of_finite_steps(y):
    lr = 0.02
    chains = fixed(WELL, np.array([y]), 1024, lr, RHO, STIFFNESS, T, seed=2)
    chains.record(1, 1200)  # 24 units of time; the slowest mode takes 1.5
    samples = chains.record(2000, 5)[:, :, 0]
    law = line_law(WELL, RHO, STIFFNESS, T, edges=EDGES)
    assert agrees(law.stepped(y, lr, slope_of(WELL)), y, samples)
    # The bias of this lr in the mean, 0.03, is 15 standard errors: q itself does not agree.
    assert not agrees(law, y, samples)


SMALL_LR = 0.001


@pytest.fixture(scope="module")
def well_samples():
    """Return samples of the well around y = 0.7 at a small lr, and y."""
    y = 0.7
    chains = fixed(WELL, np.array([y]), 2048, SMALL_LR, RHO, STIFFNESS, T, seed=4)
    chains.record(1, 12_000)
    return chains.record(300, 80)[:, :, 0], y


@pytest.mark.slow("a statistical trial of 10 s")
def test_the_chains_in_the_well_sample_q(well_samples):
    samples, y = well_samples
    law = line_law(WELL, RHO, STIFFNESS, T, edges=EDGES)
    stepped = law.stepped(y, SMALL_LR, slope_of(WELL))
    # The bias of this lr in the mean is 0.0011, against a standard error of 0.0033.
    _, error = estimate(samples.mean(axis=0))
    assert abs(stepped.mean(y) - law.mean(y)) < error / 2
    mean, spread, _ = agreement(law, y, samples)
    assert abs(mean) < SIGMAS
    assert abs(spread) < SIGMAS
    # In single bins the bias is 1 to 5 %, which this histogram detects.
    assert agrees(stepped, y, samples)


def test_the_law_of_finite_steps_tends_to_q_in_proportion_to_lr():
    law = line_law(WELL, RHO, STIFFNESS, T)
    lrs = np.array([0.004, 0.002, 0.001])
    far = [np.abs(law.stepped(0.7, lr, slope_of(WELL)).masses(0.7) - law.masses(0.7)).sum() / 2 for lr in lrs]
    np.testing.assert_allclose(far / lrs, far[-1] / lrs[-1], rtol=0.1)
    assert far[-1] < 0.005


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ("temperature", {"temperature": 1.1 * T}),
        ("rho", {"rho": 0.8 * RHO}),
        ("no ascent", {"rho": 0.0}),
        ("stiffness", {"stiffness": 1.15 * STIFFNESS}),
    ],
)
def test_the_chains_in_the_well_contradict_other_laws(well_samples, changed, options):
    samples, y = well_samples
    options = {"rho": RHO, "stiffness": STIFFNESS, "temperature": T} | options
    law = line_law(WELL, **options, edges=EDGES)
    assert not agrees(law.stepped(y, SMALL_LR, slope_of(WELL, options["rho"])), y, samples), changed


def test_the_chains_in_the_well_contradict_f_sam_with_its_jumps(well_samples):
    samples, y = well_samples
    assert abs(sigmas(samples, line_law(WELL, RHO, STIFFNESS, T, jumping=True).mean(y))) > SIGMAS


def test_the_chains_in_the_bowl_sample_q():
    # By Law.stepped this lr biases the mean by 0.0001 and the variance by 0.0002; standard errors: 0.002, 0.0009.
    y, lr, rho = 0.6, 0.001, 0.5
    chains = fixed(BOWL, np.array([y]), 2048, lr, rho, STIFFNESS, T, seed=5)
    chains.record(1, 4000)
    samples = chains.record(150, 80)[:, :, 0]
    assert agrees(line_law(BOWL, rho, STIFFNESS, T, edges=EDGES), y, samples)
    assert not agrees(line_law(BOWL, 0.9 * rho, STIFFNESS, T, edges=EDGES), y, samples)


@pytest.mark.slow("a statistical trial of 6 s")
def test_the_chains_in_the_five_dimensional_bowl_sample_q():
    # By runs at 40 times this lr the biases are 0.0001, 0.0002 and 0.0009; the standard errors are 0.003, 0.001, 0.002.
    lr, rho = 0.001, 0.5
    chains = fixed(BOWL, OFF_AXIS, 1024, lr, rho, STIFFNESS, T, seed=6)
    chains.record(1, 4000)
    samples = chains.record(150, 100)
    along = samples @ OFF_AXIS
    across = (samples**2).sum(axis=2) - along**2
    law = ball_law(BOWL, 5, rho, STIFFNESS, T)
    assert abs(sigmas(along, law.mean(1.0))) < SIGMAS
    assert abs(sigmas((along - law.mean(1.0)) ** 2, law.variance(1.0))) < SIGMAS
    assert abs(sigmas(across, law.masses(1.0) @ law.across**2)) < SIGMAS
    wrong = ball_law(BOWL, 5, 0.8 * rho, STIFFNESS, T)
    assert abs(sigmas(across, wrong.masses(1.0) @ wrong.across**2)) > SIGMAS


@pytest.mark.slow("a statistical trial of 20 s")
def test_one_plain_chain_samples_q():
    # One chain in user code; 24 batches of 20 units of time, many times that of the slowest mode.
    y, lr, stiffness = 0.7, 0.02, 4.0
    x, opt, closure = plain(WELL, np.array([y]), np.array([y]), lr, RHO, stiffness=stiffness, temperature=T, seed=7)
    samples = np.empty((24, 1000))
    for row in samples:
        for i in range(row.size):
            opt.step(closure)
            row[i] = x.item()
    batches = samples[1:].T
    law = line_law(WELL, RHO, stiffness, T).stepped(y, lr, slope_of(WELL))
    assert abs(sigmas(batches, law.mean(y))) < SIGMAS
    assert abs(sigmas((batches - law.mean(y)) ** 2, law.variance(y))) < SIGMAS
    hotter = line_law(WELL, RHO, stiffness, 1.5 * T).stepped(y, lr, slope_of(WELL))
    assert abs(sigmas((batches - law.mean(y)) ** 2, hotter.variance(y))) > SIGMAS


def centers(f, chains, replicas, start, lr, temperature, pull, burn, count):
    """Return the paths of centers, each moved by `chains` chains, in independent replicas: shape (count, replicas)."""
    y = torch.full((replicas,), start, dtype=torch.float64)
    center = LocalCenter(y)
    options = {"stiffness": STIFFNESS, "temperature": temperature, "pull": pull, "period": 5}
    group = [Replicas(f.gradient, y[:, None], center, lr, RHO, seed=10 + i, **options) for i in range(chains)]
    path = np.empty((burn + count, replicas))
    for row in path:
        for _ in range(20):
            for chain in group:
                chain.step()
        row[:] = center.vector.numpy()
    return path[burn:]


@pytest.mark.slow("a statistical trial of 5 s")
def test_two_chains_move_the_center_to_the_minimum_of_the_bowl():
    # By symmetry the center's mean is 0 at any lr and pull. From 1 it approaches 0 at a rate of about
    # chains * pull / period * F'' / lambda = 1/250 per step; the first 3000 steps are not recorded.
    path = centers(BOWL, 2, 256, 1.0, 0.02, T, pull=0.02, burn=150, count=400)
    mean, error = estimate(path.mean(axis=0))
    assert error < 0.01
    assert abs(mean) < SIGMAS * error


@pytest.mark.slow("a statistical trial of 20 s")
def test_four_chains_move_the_center_to_the_minimum_of_the_free_energy():
    # F has one minimum, between the wells. With a pull of 0.0025 each 5 steps the center has a variance v of 0.03, and
    # F's skewness shifts its mean by -F''' / (2 F'') v = 0.004; the remainder of the start shifts it by 0.001.
    # Together this is 1.3 standard errors.
    f, temperature, lr = Well(0.5, 0.2), 0.8, 0.01
    path = centers(f, 4, 512, 0.0, lr, temperature, pull=0.0025, burn=200, count=350)
    mean, error = estimate(path.mean(axis=0))
    assert error < 0.01

    def minimiser(rho):
        law = line_law(f, rho, STIFFNESS, temperature, reach=5.0)
        # The zero of the score of steps of this lr; that of q is 0.01 away.
        return scipy.optimize.brentq(lambda y: law.stepped(y, lr, slope_of(f, rho)).score(y), -0.6, 0.1, xtol=1e-4)

    assert abs(mean - minimiser(RHO)) < SIGMAS * error
    assert abs(mean - minimiser(0.0)) > SIGMAS * error
