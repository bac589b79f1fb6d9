"""MSAM against a transcription of the authors' programs for SGD and AdamW, on flat vectors."""

import pytest
import torch

from lsam_hpc import SAM, InputError
from tests.helpers.problems import batches, closure_of, flat, gradient, network

LR, RHO = 0.1, 0.3


def test_equals_the_authors_sgd():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9), RHO, ascent="msam")
    w, v, inverse = flat(model), torch.zeros_like(flat(model)), 0.0  # w: perturbed, as the authors keep it
    for images, labels in batches(20):
        g = gradient(model, w, images, labels)
        w = w + RHO * inverse * v
        v = 0.9 * v + g
        w = w - LR * v
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(flat(model), w, rtol=0, atol=1e-12)
        inverse = 1 / (v.norm() + 1e-12)
        w = w - RHO * inverse * v


def test_equals_the_authors_adamw():
    model = network()
    betas, eps = (0.8, 0.95), 1e-8
    opt = SAM(torch.optim.AdamW(model.parameters(), lr=LR, betas=betas, eps=eps, weight_decay=0), RHO, ascent="msam")
    w, m, v, factor = flat(model), torch.zeros_like(flat(model)), torch.zeros_like(flat(model)), 0.0
    for step, (images, labels) in enumerate(batches(20), 1):
        g = gradient(model, w, images, labels)
        w = w + factor * m
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        w = w - LR / (1 - betas[0] ** step) * m / ((v / (1 - betas[1] ** step)).sqrt() + eps)
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(flat(model), w, rtol=0, atol=1e-12)
        factor = RHO / (m.norm() + 1e-12)
        w = w - factor * m


def test_runs_one_pass_and_needs_momentum():
    model, calls = network(), []
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9), RHO, ascent="msam")
    for x, y in batches(3):
        closure = closure_of(model, opt, x, y)
        opt.step(lambda c=closure: calls.append(1) or c())
    assert len(calls) == 3
    with pytest.raises(InputError, match=r"^ascent: expected a base optimizer with momentum for msam, found SGD"):
        SAM(torch.optim.SGD(model.parameters(), lr=LR), ascent="msam")


class Renamed(torch.optim.SGD):
    """Keeps its momentum under a name that is not torch's."""

    def step(self, closure=None):
        """Take a step of SGD without the momentum that it keeps."""
        for p in self.param_groups[0]["params"]:
            self.state[p]["z"] = p.grad.clone()
            p.data.sub_(p.grad, alpha=LR)


def test_refuses_a_base_whose_momentum_it_does_not_find():
    model = network()
    opt = SAM(Renamed(model.parameters(), lr=LR, momentum=0.9), RHO, ascent="msam")
    first, second = batches(2)
    opt.step(closure_of(model, opt, *first))
    with pytest.raises(InputError, match=r"^ascent: expected a base optimizer that keeps momentum_buffer or exp_avg"):
        opt.step(closure_of(model, opt, *second))
