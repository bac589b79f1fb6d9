"""AdaSAP against its formula: a radius for each neuron, by the size of its weights."""

import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.optim.masks import AdaSAP
from tests.helpers.masked import METRICS, RHO, trained
from tests.helpers.problems import network

LEAST = 0.1


@pytest.mark.parametrize("metric", METRICS)
def test_a_step_equals_the_formula(metric):
    """network(): 8 neurons with 6 weights each, then 3 with 8 weights each."""

    def factors(step, x, g, at):
        first, _, second, _ = x.split([48, 8, 24, 3])
        psi = torch.cat([first.view(8, 6).pow(2).sum(1), second.view(3, 8).pow(2).sum(1)]).sqrt()
        rho_max, rho_min = RHO, LEAST * RHO
        rho = rho_max - (psi - psi.min()) / (psi.max() - psi.min()) * (rho_max - rho_min)
        assert abs(rho.max() - RHO) < 1e-15
        assert abs(rho.min() - LEAST * RHO) < 1e-15
        pieces = [rho[:8].repeat_interleave(6), rho[:8], rho[8:].repeat_interleave(8), rho[8:]]
        return torch.cat(pieces) / RHO

    assert max(trained(12, lambda model: AdaSAP(model, LEAST), factors, metric=metric)) <= 1e-12


def test_convolutions_have_a_radius_per_output_and_normalization_layers_the_largest():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1, 1).expand(3, 2, 3, 3))
        model[3].weight.fill_(18**0.5 * 2 / 3**0.5)  # as large as the third output
    mask, params = AdaSAP(model, 0.5), list(model.parameters())
    direction = [torch.ones_like(p) for p in params]
    mask.prepare(params, direction)
    mask.multiply_(params, direction)
    by_name = {name: d for (name, _), d in zip(model.named_parameters(), direction, strict=True)}
    for name, expected in (
        ("0.weight", torch.tensor([1.0, 0.5, 0.75]).view(3, 1, 1, 1).expand(3, 2, 3, 3)),
        ("0.bias", torch.tensor([1.0, 0.5, 0.75])),
        ("1.weight", torch.ones(3)),
        ("1.bias", torch.ones(3)),
        ("3.weight", torch.full((2, 3), 0.75)),
        ("3.bias", torch.full((2,), 0.75)),
    ):
        torch.testing.assert_close(by_name[name], expected)


def test_equal_neurons_have_the_largest_radius():
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    mask, direction = AdaSAP(model, 0.5), [torch.ones(2, 3)]
    mask.prepare([model.weight], direction)
    mask.multiply_([model.weight], direction)
    assert torch.equal(direction[0], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaSAP(network(), 2.0), "mask: expected a smallest radius from 0 to 1, found 2.0"),
        (lambda: AdaSAP(nn.LayerNorm(3)), "mask: expected a model with weights of two or more dimensions, found none"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message
