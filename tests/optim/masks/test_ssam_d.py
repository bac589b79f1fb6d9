"""SSAM-D against a transcription of the authors' code on flat vectors: drop, regrow, and the cosine rate."""

import itertools
import math

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim.masks import SSAMD
from tests.helpers.masked import GAMMA, METRICS, RHO, mask_of, trained
from tests.helpers.problems import network

SEED, SIZES = 5, [(8, 6), (8,), (3, 8), (3,)]


def draws(number):
    """Return the random scores of one draw, one vector: of `seed` and the number of the draw."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + number)
    return torch.cat([torch.rand(size, generator=generator).reshape(-1) for size in SIZES])


def top(scores, count):
    """Return a mask of the largest scores."""
    mask = torch.zeros(len(scores), dtype=torch.float64)
    mask[torch.topk(scores, count).indices] = 1.0
    return mask


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("drop", "grow"), [("gradient", "random"), ("weight", "gradient"), ("gradient", "gradient"), ("random", "weight")]
)
def test_a_step_equals_the_authors_code(drop, grow, metric):
    sparsity, drop_rate, refresh, total = 0.75, 0.5, 3, 12
    n = sum(math.prod(size) for size in SIZES)
    current = [top(draws(0), n - math.ceil(n * sparsity))]
    history, built = [], []

    def factors(step, x, g, at):
        mask = current[0]
        history.append(mask)
        if step % refresh == 0:
            scale = x.abs() + 0.01 if metric == "adaptive" else torch.ones_like(x)
            perturbed = x + RHO * mask * scale**2 * g / ((scale * g).norm() + GAMMA)
            # The first and only random score of the draw: no case has both.
            scores = {"gradient": g.abs(), "weight": perturbed.abs(), "random": draws(1 + step)}
            rate = drop_rate * (1 + math.cos(math.pi * step / total)) / 2
            death = int(min((n - n * sparsity) * rate, n * sparsity))
            kept = top((scores[drop] + 1e-7) * mask, int((n - n * sparsity) * (1 - rate)))
            current[:] = [kept + top((scores[grow] + 1e-7) * (1 - mask), death)]
            assert current[0].max() == 1
        if step:
            assert torch.equal(mask_of(built[0], params), mask)
        return mask

    model = network()
    params = list(model.parameters())

    def make(model):
        built.append(SSAMD(total, 0.25, refresh, drop_rate=drop_rate, drop=drop, grow=grow, seed=SEED))
        return built[0]

    assert max(trained(12, make, factors, metric=metric, model=model)) <= 1e-12
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(history)] == [step % 3 == 0 for step in range(11)]


def test_the_rate_is_0_at_the_end_and_after_it():
    params = [torch.zeros(100)]
    mask = SSAMD(10, 0.5, 1, drop="random", grow="random")
    changes = []
    for _ in range(14):
        mask.prepare(params, [torch.ones(100)])
        before = mask_of(mask, params)
        mask.moved(params)
        changes.append(int((mask_of(mask, params) - before).abs().sum()))
    assert changes[0] == 50  # half of the 50 are dropped, and as many grown
    # Both int() may lose a coordinate, which the next mask gets back.
    assert all(a + 1 >= b for a, b in itertools.pairwise(changes))
    assert changes[10] <= 1
    assert changes[11:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0}, "mask: expected a total of 1 step or more, found 0"),
        ({"total": 9, "density": 2.0}, "mask: expected a density > 0 and <= 1, found 2.0"),
        ({"total": 9, "drop_rate": 1.5}, "mask: expected a drop rate from 0 to 1, found 1.5"),
        ({"total": 9, "grow": "size"}, "mask: expected a score of gradient, weight, random, found 'size'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        SSAMD(**arguments)
    assert str(caught.value) == message
