"""ESAM's selection against its formula written out."""

from contextlib import nullcontext

import pytest
import torch

from lsam_hpc import SAM
from lsam_hpc.optim import masks
from lsam_hpc.optim.samples import ESAM, sample_step
from tests.helpers.problems import batches, flat, network
from tests.helpers.samples import EXACT, LR, ascent_of, losses_of, optimizer, sample_losses, uniform, weighted_gradient


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 8), (0.3, 5), (0.01, 1)])
def test_esam_descends_the_mean_loss_of_the_samples_that_the_ascent_raises_most(fraction, count):
    model, calls = network(), []
    opt, at = optimizer(model), flat(model)
    for x, y in batches(10):
        moved = at + ascent_of(model, at, x, y, uniform(16))
        change = sample_losses(model, moved, x, y) - sample_losses(model, at, x, y)
        alpha = change.sort(descending=True).values[count]
        chosen = change > alpha
        at = at - LR * weighted_gradient(model, moved, x, y, chosen.double() / count)
        sample_step(opt, losses_of(model, x, y, calls), selection=ESAM(fraction))
        assert calls[-1].tolist() == chosen.nonzero().flatten().tolist()
        torch.testing.assert_close(flat(model), at, **EXACT)


def test_a_selection_without_memory_has_no_state():
    selection = ESAM(0.5)
    selection.load_state_dict(selection.state_dict())
    assert selection.state_dict() == {}


def test_with_esams_mask_the_first_pass_leaves_tensors_out_and_the_step_is_the_same():
    """Both techniques of ESAM: equal to the step without saved work, and to fewer gradients in the first pass."""
    results, computed = [], []
    for saves in (True, False):
        model = network()
        opt = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.2, mask=masks.Tensors(0.5, seed=1))
        if not saves:
            opt.masked = nullcontext
        counts = []
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda _, counts=counts: counts.append(1))
        for x, y in batches(6):
            sample_step(opt, losses_of(model, x, y), selection=ESAM(0.5))
        results.append(flat(model))
        computed.append(len(counts))
    assert torch.equal(*results)
    assert computed[1] == 6 * 2 * 4
    assert computed[0] < computed[1]
