"""SAMPa and AsyncSAM on a pair of ranks equal those on a single rank."""

import torch
from torch import distributed

from lsam_hpc import SAM
from tests.helpers import gloo
from tests.helpers.problems import batches, flat, network, step_on

ASCENTS = ("sampa", "asyncsam")


def train(ascent, pair=None):
    """Return the parameters after 10 steps, and the number of passes."""
    model, calls = network(), []
    base = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    opt = SAM(base, 0.2, ascent=ascent, pair=pair)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for x, y in batches(10):
        step_on(model, opt, x, y)
    return flat(model), len(calls)


def pairs(folder):
    results = {}
    for ascent in ASCENTS:
        results[ascent], passes = train(ascent, distributed.group.WORLD)
        assert passes == 10
    torch.save(results, folder / f"{distributed.get_rank()}.pt")


def test_a_pair_of_ranks_equals_one_rank(tmp_path):
    gloo.run(pairs, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for ascent in ASCENTS:
        assert torch.equal(results[0][ascent], results[1][ascent])
        torch.testing.assert_close(results[0][ascent], train(ascent)[0], rtol=0, atol=1e-12)
