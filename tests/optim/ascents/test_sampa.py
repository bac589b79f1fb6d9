"""SAMPa against the paper's equations and against a transcription of the authors' program, on flat vectors."""

import copy

import pytest
import torch

from lsam_hpc import SAM, InputError
from tests.helpers.problems import ascent_vector, batches, closure_of, flat, gradient, network, step_on

LR, RHO = 0.3, 0.2


def official(model, data, interpolation, momentum, weight_decay):
    """Yield x after each step of the authors' two ranks, computed in turn."""
    x = flat(model)
    y_gradient = at_ascent = total = torch.zeros_like(x)
    buffer = previous = None
    for batch in data:
        previous = previous or batch
        first = (total - at_ascent) / interpolation  # the first rank's own record of grad f(y)
        at_ascent = (1 - interpolation) * gradient(model, x + ascent_vector(first, RHO, 1e-12), *previous)
        ahead = y_gradient if buffer is None else y_gradient + weight_decay * x + momentum * buffer
        y_gradient = gradient(model, x - LR * ahead, *batch)
        total = at_ascent + interpolation * y_gradient
        update = total + weight_decay * x
        if momentum:
            buffer = update if buffer is None else momentum * buffer + update
            update = buffer
        x = x - LR * update
        previous = batch
        yield x


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
@pytest.mark.parametrize("interpolation", [0.2, 0.7])
def test_equals_the_authors_program(momentum, weight_decay, interpolation):
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum, weight_decay=weight_decay)
    opt = SAM(base, RHO, ascent="sampa", interpolation=interpolation)
    for batch, expected in zip(
        batches(20), official(model, batches(20), interpolation, momentum, weight_decay), strict=True
    ):
        step_on(model, opt, *batch)
        torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolation", [0.0, 0.2, 1.0])
def test_equals_the_papers_equations_after_the_first_step(interpolation):
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, 1e-3, ascent="sampa", interpolation=interpolation)
    y_gradient = previous = None
    for batch in batches(20):
        x = flat(model)
        step_on(model, opt, *batch)
        if y_gradient is None:  # y_0 = x_0
            y_gradient = gradient(model, x, *batch)
            expected = x - LR * y_gradient
        else:
            at_ascent = gradient(model, x + ascent_vector(y_gradient, RHO, 1e-3), *previous)
            y_gradient = gradient(model, x - LR * y_gradient, *batch)
            expected = x - LR * ((1 - interpolation) * at_ascent + interpolation * y_gradient)
        torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-12)
        previous = batch


@pytest.mark.parametrize("options", [{"momentum": 0.9, "nesterov": True}, {"momentum": 0.8, "dampening": 0.3}])
@pytest.mark.parametrize("maximize", [False, True])
def test_looks_ahead_by_the_step_that_torchs_sgd_takes(options, maximize):
    model = network()
    options = {"lr": LR, "weight_decay": 0.05, "maximize": maximize, **options}
    opt = SAM(torch.optim.SGD(model.parameters(), **options), RHO, ascent="sampa")
    points = []
    model.register_forward_pre_hook(lambda *_: points.append(flat(model)))
    for batch in batches(5):
        twin = network()
        with torch.no_grad():
            for p, q in zip(twin.parameters(), model.parameters(), strict=True):
                p.copy_(q)
        base = torch.optim.SGD(twin.parameters(), **options)
        base.load_state_dict(copy.deepcopy(opt.base.state_dict()))
        if opt.last.params:
            for p, g in zip(twin.parameters(), opt.last.grads, strict=True):
                p.grad = g.clone()
            base.step()
        step_on(model, opt, *batch)
        torch.testing.assert_close(points[-1], flat(twin), rtol=0, atol=1e-12)


def test_needs_the_mini_batch():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, ascent="sampa")
    with pytest.raises(InputError) as caught:
        opt.step(closure_of(model, opt, *next(batches(1))))
    assert str(caught.value) == (
        "step: expected step(closure, batch=...) with the ascent sampa, where closure takes the batch, found no batch"
    )


@pytest.mark.parametrize("kind", ["sam", "dp-sat", "gam"])
def test_a_pair_needs_an_ascent_of_two_independent_gradients(kind):
    with pytest.raises(InputError, match=f"^pair: expected the ascent sampa or asyncsam, found {kind}$"):
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), ascent=kind, pair=object())


def test_a_parameter_that_joins_later_looks_ahead_by_its_first_update():
    # Its momentum buffer is missing where the others have theirs.
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, dampening=0.3), RHO, ascent="sampa")
    data = list(batches(3))
    step_on(model, opt, *data[0])
    del opt.base.state[model[0].bias]
    x, before = flat(model), copy.deepcopy(opt.base.state_dict()["state"])
    points = []
    model.register_forward_pre_hook(lambda *_: points.append(flat(model)))
    step_on(model, opt, *data[1])
    expected, at = [], 0
    for i, (p, g) in enumerate(zip(model.parameters(), first_gradient(data[0]), strict=True)):
        update = g if i == 1 else 0.9 * before[i]["momentum_buffer"] + 0.7 * g
        expected.append(x[at : at + p.numel()] - LR * update.reshape(-1))
        at += p.numel()
    torch.testing.assert_close(points[-1], torch.cat(expected), rtol=0, atol=1e-12)


def first_gradient(batch):
    model = network()
    g = gradient(model, flat(model), *batch)
    pieces = g.split([p.numel() for p in model.parameters()])
    return [piece.view(p.shape) for piece, p in zip(pieces, model.parameters(), strict=True)]
