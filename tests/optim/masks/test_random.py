"""The mask of random coordinates."""

import itertools

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim.masks import Random
from tests.helpers.masked import METRICS, trained
from tests.helpers.problems import network


@pytest.mark.parametrize("metric", METRICS)
def test_a_step_moves_the_coordinates_of_the_mask_and_the_norm_is_over_all(metric):
    shapes, history = [p.shape for p in network().parameters()], []

    def factors(step, x, g, at):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + step - step % 4)
        draws = [torch.rand(shape, generator=generator) for shape in shapes]
        history.append(torch.cat([draw.reshape(-1) < 0.25 for draw in draws]))
        return history[-1]

    assert max(trained(12, lambda model: Random(0.25, 4, seed=3), factors, metric=metric)) <= 1e-12
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(history)]
    assert changes == [step % 4 == 0 for step in range(1, 12)]


def test_the_mask_has_its_density_and_repeats_for_its_seed():
    directions = [torch.ones(100, 100), torch.ones(50)]
    drawn = []
    for seed in (1, 1, 2):
        mask, copies = Random(0.3, 1, seed), [d.clone() for d in directions]
        mask.prepare(directions, directions)
        mask.multiply_(directions, copies)
        drawn.append(copies[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # 10,000 coordinates: the standard deviation of the share is 0.0046; the tolerance is 4 sigma.
    assert abs(drawn[0].mean() - 0.3) < 4 * 0.0046


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "mask: expected a density > 0 and <= 1, found 0.0"),
        ((1.5,), "mask: expected a density > 0 and <= 1, found 1.5"),
        ((0.5, 0), "mask: expected a refresh period of 1 ascent or more, found 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        Random(*arguments)
    assert str(caught.value) == message
