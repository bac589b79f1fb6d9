"""DP-SAT: the ascent along the gradient of the last descent."""

import pytest
import torch
from torch.nn import functional

from lsam_hpc import SAM, InputError
from tests.helpers.problems import ascent_vector, batches, closure_of, flat, gradient, network

LR, RHO, GAMMA = 0.3, 0.2, 1e-3


def last_of(opt):
    return torch.cat([g.reshape(-1) for g in opt.last.grads])


def lars(params):
    import pytorch_optimizer

    return pytorch_optimizer.LARS(params, lr=LR, momentum=0.9, weight_decay=0.01)


def nov_ograd(params):
    import pytorch_optimizer

    return pytorch_optimizer.NovoGrad(params, lr=0.01, weight_decay=0.01)


def ranger(params):
    import pytorch_optimizer

    return pytorch_optimizer.Ranger(params, lr=0.01)


class Eraser(torch.optim.SGD):
    """SGD that overwrites the gradients."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.fill_(7.0)


BASES = {
    "sgd": lambda params: torch.optim.SGD(params, LR),
    "nesterov": lambda params: torch.optim.SGD(params, LR, momentum=0.9, nesterov=True, foreach=True),
    "weight decay": lambda params: torch.optim.SGD(params, LR, momentum=0.9, weight_decay=0.1, foreach=True),
    "adamw": lambda params: torch.optim.AdamW(params, 0.01, weight_decay=0.1, foreach=True),
    "lars": lars,
    "novograd": nov_ograd,
    "ranger": ranger,
    "eraser": lambda params: Eraser(params, LR),
}


@pytest.mark.parametrize("base", BASES)
def test_ascends_along_the_gradient_of_the_last_descent_whatever_the_base_does_with_it(base):
    model = network()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(flat(model)))
    opt = SAM(BASES[base](model.parameters()), RHO, GAMMA, ascent="dp-sat")
    last = torch.zeros_like(flat(model))
    for images, labels in batches(12):
        x = flat(model)
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(seen[-1], x + ascent_vector(last, RHO, GAMMA), rtol=0, atol=1e-12)
        last = gradient(model, seen[-1], images, labels)
        torch.testing.assert_close(last_of(opt), last, rtol=0, atol=1e-12)


def test_a_hook_of_the_base_may_change_the_gradients():
    model = network()
    base = torch.optim.SGD(model.parameters(), LR)

    def clip(*_):
        for p in model.parameters():
            p.grad.clamp_(max=1e-3)

    base.register_step_pre_hook(clip)
    opt = SAM(base, RHO, ascent="dp-sat")
    images, labels = next(batches(1))
    expected = gradient(model, flat(model), images, labels)
    opt.step(closure_of(model, opt, images, labels))
    torch.testing.assert_close(last_of(opt), expected, rtol=0, atol=1e-12)


def test_calls_the_closure_once():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, ascent="dp-sat")
    calls = []
    for x, y in batches(5):
        closure = closure_of(model, opt, x, y)
        opt.step(lambda c=closure: calls.append(1) or c())
    assert len(calls) == 5


def private(model, noise, data):
    opacus = pytest.importorskip("opacus")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=16)
    base = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    model, base, _ = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=base,
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=0.3,
        poisson_sampling=False,
    )
    return model, base


def test_with_opacus_the_ascent_is_along_the_private_gradient():
    # Park et al. 2023, algorithm 1, with torch's SGD as the update; the noise is what Opacus drew.
    images, labels = next(batches(1))
    model, base = private(network(), 1.1, (images, labels))
    opt = SAM(base, RHO, 0.0, ascent="dp-sat")
    torch.manual_seed(3)
    last, buffer = torch.zeros_like(flat(model)), None
    for _ in range(10):
        x = flat(model)
        where = []
        opt.zero_grad()
        opt.perturb()
        where.append(flat(model))
        functional.cross_entropy(model(images), labels).backward()
        opt.restore()
        opt.update()
        norm = last.norm() if last.norm() > 0 else 1.0
        torch.testing.assert_close(where[0], x + RHO * last / norm, rtol=0, atol=1e-12)
        last = last_of(opt)
        buffer = last if buffer is None else 0.9 * buffer + last
        torch.testing.assert_close(flat(model), x - LR * buffer, rtol=0, atol=1e-12)
    # Without noise the private gradient is the mean of the clipped gradients of the samples.
    model, base = private(network(), 0.0, (images, labels))
    opt = SAM(base, 0.0, ascent="dp-sat")
    clipped = []
    for image, label in zip(images, labels, strict=True):
        g = gradient(network(), flat(model), image[None], label[None])
        clipped.append(g * min(1.0, 0.3 / (g.norm().item() + 1e-6)))
    opt.step(closure_of(model, opt, images, labels))
    torch.testing.assert_close(last_of(opt), torch.stack(clipped).mean(0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("ascent", ["sam", "asyncsam", "sampa", "gam"])
def test_opacus_is_refused_where_the_ascent_would_use_gradients_that_are_not_private(ascent):
    _, base = private(network(), 1.0, next(batches(1)))
    with pytest.raises(InputError) as caught:
        SAM(base, ascent=ascent)
    assert str(caught.value) == (
        "ascent: expected dp-sat, msam or center with DPOptimizer, whose step makes the gradients private, "
        f"found {ascent}, which would use them before"
    )


def test_a_frozen_parameter_is_left_out():
    model = network()
    model[0].weight.requires_grad_(False)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, ascent="dp-sat")
    before = model[0].weight.clone()
    for x, y in batches(3):
        opt.step(closure_of(model, opt, x, y))
    assert torch.equal(model[0].weight, before)
