"""The example with simulation data: its simulator, and its scores recomputed from the logs."""

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import ndtr
from scipy.stats import norm

from lsam_hpc.trajectory import Run
from tests.helpers.examples import script, tiny

RANKS = [1, pytest.param(2, marks=pytest.mark.slow("two ranks"))]


def test_the_simulator_has_the_steady_state_of_the_closed_form():
    omega, zeta = (grid.ravel() for grid in np.meshgrid(np.linspace(0.4, 1.8, 8), [0.1, 0.25, 0.4]))
    expected = 1 / np.hypot(1 - omega**2, 2 * zeta * omega)
    np.testing.assert_allclose(script("oscillator").amplitude(omega, zeta), expected, rtol=5e-4)


def outputs(run, vector, x):
    """Return the network's outputs in float64, from a flat vector of the log."""
    weights = [vector[at : at + int(np.prod(shape))].reshape(shape).astype(float) for _, shape, at in run.layout]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = np.tanh(x @ weight.T + bias)
    return (x @ weights[-2].T + weights[-1])[:, 0]


def quantile(means, width, level):
    """Return a quantile of each mixture of normal distributions, by bisection."""
    low, high = means.min(0) - 9 * width, means.max(0) + 9 * width
    for _ in range(50):
        middle = (low + high) / 2
        above = ndtr((middle - means) / width).mean(0) > level
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


@pytest.mark.parametrize("ranks", RANKS)
def test_the_scores_are_those_of_the_logged_states(openmpi, tmp_path, ranks):
    rows = tiny(openmpi, ranks, "oscillator", tmp_path)
    example, trained, run = script("oscillator"), Run(tmp_path / "0-training"), Run(tmp_path / "0-sampling")
    assert run.ranks == list(range(ranks))
    assert sum(len(run.steps(rank)["loss"]) for rank in run.ranks) == 200

    losses = trained.steps(0)["loss"]
    assert losses[-5:].mean() < losses[:5].mean() / 3
    # The center does not move while the chains sample; the chains do.
    center = trained.snapshot(0, -1, "center")
    late = []
    for rank in run.ranks:
        count = len(run.snapshots(rank)["iteration"])
        for at in range(count):
            np.testing.assert_array_equal(run.snapshot(rank, at, "center"), center)
        late += [run.snapshot(rank, at) for at in range(count) if at >= count // 2]
    assert min(np.linalg.norm(state - center) for state in late) > 0.1

    width, checked = example.NOISE, 0
    for row in rows:
        x, y = (t.double().numpy() for t in example.simulate(1000, example.RANGES[row["where"]], 100))
        if row["where"] == "in range":  # all have learned something
            assert row["rmse"] < 0.9 * y.std()
        states = {"center": [center], "chains": late}.get(row["ensemble"])
        if states is None:
            continue
        means, y = np.stack([outputs(run, state, x) for state in states]), y[:, 0]
        likelihood = norm.pdf(y, means, width).mean(0)
        assert row["nll"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-3)
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean((means.mean(0) - y) ** 2)), rel=1e-4)
        for level in (50, 90):
            low, high = (quantile(means, width, 0.5 + side * level / 200) for side in (-1, 1))
            assert row[f"within{level}"] == pytest.approx(100 * np.mean((low <= y) & (y <= high)), abs=0.11)
        checked += 1
    assert checked == 4
    assert {row["ensemble"] for row in rows} == {"center", "chains", "one independent", "independent"}
    assert imread(tmp_path / "oscillator.png").shape[:2] == (570, 1350)
