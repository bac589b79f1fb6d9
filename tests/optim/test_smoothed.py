"""The smoothed loss against its closed form."""

import math

import numpy as np
import pytest
import torch

from lsam_hpc.optim.smoothed import SmoothedLoss


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_is_an_exponential_mean_of_the_finite_losses(kind):
    losses = [3.0, math.inf, 1.0, math.nan, 2.0, 0.5]
    mean = SmoothedLoss()
    assert math.isnan(mean.value)
    for loss in losses:
        mean.add(kind(loss))
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    # The first has weight 0.9^3, each later one 0.1 * 0.9^(steps since).
    weights = 0.9 ** np.arange(len(finite))[::-1] * np.array([1.0, 0.1, 0.1, 0.1])
    assert weights.sum() == pytest.approx(1)
    assert mean.value == pytest.approx(weights @ finite)
    mean.set(7.0)
    mean.add(kind(8.0))
    assert mean.value == pytest.approx(7.1)


def test_a_loss_that_requires_a_gradient_gives_no_warning(recwarn):
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # without this torch warns only once per process
    try:
        SmoothedLoss().add(torch.ones((), requires_grad=True) * 2)
    finally:
        torch.set_warn_always(before)
    assert [str(warning.message) for warning in recwarn] == []


def test_the_mean_is_rounded_to_float32_as_a_tensor_is():
    mean, expected = SmoothedLoss(), torch.full((), math.nan)
    for loss in torch.rand(50, generator=torch.Generator().manual_seed(0)):
        mean.add(loss)
        old = expected.item()
        expected.fill_(0.9 * old + (1 - 0.9) * loss.item() if math.isfinite(old) else loss.item())
        assert mean.value == expected.item()
