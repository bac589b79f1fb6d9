"""The ascent along the center's movement, against the recursion written out."""

import pytest
import torch

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM
from tests.helpers.problems import ascent_vector, batches, closure_of, flat, gradient, network

LR, RHO, GAMMA, PULL, PERIOD = 0.2, 0.2, 1e-3, 0.3, 2


@pytest.mark.parametrize("coupling", ["elastic", "kernel", "restart"])
def test_equals_the_recursion_of_two_chains(coupling):
    models = [network(), network()]
    center = LocalCenter(flat(models[0]))
    opts = [
        LocalLSAM(
            torch.optim.SGD(m.parameters(), lr=LR),
            center,
            RHO,
            GAMMA,
            ascent="center",
            coupling=coupling,
            pull=PULL,
            period=PERIOD,
            stiffness=0.5,
        )
        for m in models
    ]
    y = flat(models[0])
    xs, reads, moves = [y, y], [y, y], [torch.zeros_like(y)] * 2
    for step, batch in enumerate(batches(24)):
        i, force = step % 2, 0.5 if coupling == "kernel" else 0.0
        opts[i].step(closure_of(models[i], opts[i], *batch))
        g = gradient(models[i], xs[i] + ascent_vector(moves[i], RHO, GAMMA), *batch)
        xs[i] = xs[i] - LR * (g + force * (xs[i] - reads[i]))
        if step // 2 % PERIOD == PERIOD - 1:
            if coupling == "elastic":
                moves[i], reads[i] = reads[i] - y, y
                delta = PULL * (xs[i] - y)
                xs[i] = xs[i] - delta
                y = y + delta
            else:
                y = y + PULL * (xs[i] - reads[i])
                moves[i], reads[i] = reads[i] - y, y
                xs[i] = y if coupling == "restart" else xs[i]
        torch.testing.assert_close(flat(models[i]), xs[i], rtol=0, atol=1e-12)
    assert moves[0].norm() > 0.01


def test_needs_a_center():
    with pytest.raises(InputError, match=r"^ascent: expected center with LSAM only, found it without a center$"):
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), ascent="center")
