"""AsyncSAM against its definition, on flat vectors."""

import pytest
import torch

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.minibatch import first_part
from tests.helpers.problems import ascent_vector, batches, closure_of, flat, gradient, network, step_on

LR, RHO, GAMMA = 0.3, 0.2, 1e-3


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 4), (1.0, 16), (0.01, 1)])
def test_equals_its_definition(fraction, count):
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    opt = SAM(base, RHO, GAMMA, ascent="asyncsam", ascent_fraction=fraction)
    ascent = buffer = None
    for images, labels in batches(20):
        x = flat(model)
        e = 0 if ascent is None else ascent_vector(ascent, RHO, GAMMA)
        descent = gradient(model, x + e, images, labels)
        buffer = descent if buffer is None else 0.9 * buffer + descent
        ascent = gradient(model, x, images[:count], labels[:count])
        step_on(model, opt, images, labels)
        torch.testing.assert_close(flat(model), x - LR * buffer, rtol=0, atol=1e-12)


def test_a_closure_without_a_batch_runs_on_all_samples():
    ours, other = network(), network()
    opt, peer = (
        SAM(torch.optim.SGD(m.parameters(), lr=LR), RHO, ascent="asyncsam", ascent_fraction=1.0) for m in (ours, other)
    )
    for x, y in batches(5):
        opt.step(closure_of(ours, opt, x, y))
        step_on(other, peer, x, y)
    assert torch.equal(flat(ours), flat(other))


def test_a_part_of_the_mini_batch_needs_the_mini_batch():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, ascent="asyncsam")
    with pytest.raises(InputError, match=r"^step: expected step\(closure, batch=\.\.\.\) with the ascent asyncsam"):
        opt.step(closure_of(model, opt, *next(batches(1))))


def test_the_first_part_of_a_mini_batch():
    x, y = torch.arange(12).view(6, 2), torch.arange(6)
    part = first_part({"x": x, "pair": [y, (x, "name", torch.tensor(3.0))]}, 0.5)
    assert torch.equal(part["x"], x[:3])
    assert torch.equal(part["pair"][0], y[:3])
    assert part["pair"][1][1] == "name"
    assert part["pair"][1][2] == 3
    with pytest.raises(InputError, match=r"^batch: expected tensors with one row per sample, found tensors of 5 and 6"):
        first_part((x, y[:5]), 0.5)
    with pytest.raises(InputError, match=r"^batch: expected tensors with one row per sample, found no tensor$"):
        first_part("words", 0.5)


def test_after_a_failed_pass_at_x_plus_e_the_next_step_is_as_the_first():
    """The ascent has overwritten the last gradient: the next one must not go along what is left of it."""
    model, calls = network(), []
    base = torch.optim.SGD(model.parameters(), lr=LR)
    opt = SAM(base, RHO, ascent="asyncsam", ascent_fraction=1.0, metric="adaptive")
    first, second, third = batches(3)
    step_on(model, opt, *first)
    closure = closure_of(model, opt, *second)

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return closure()

    with pytest.raises(MemoryError):
        opt.step(failing)
    x = flat(model)
    step_on(model, opt, *third)
    torch.testing.assert_close(flat(model), x - LR * gradient(model, x, *third), rtol=0, atol=1e-12)
