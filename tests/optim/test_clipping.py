"""Coordinate-wise clipping against its definition by numpy, alone and with SAM."""

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM
from lsam_hpc.optim.clipping import clip_coordinates
from tests.helpers.problems import batches, closure_of, flat, gradient, network


def clipped(grads, fraction):
    """Return the coordinates clipped to the magnitude that follows the largest ones, by numpy."""
    values = grads.numpy()
    count = int(len(values) * fraction)
    at = len(values) - 1 - count
    limit = np.partition(np.abs(values), at)[at]
    return torch.from_numpy(np.sign(values) * np.minimum(np.abs(values), limit))


FRACTIONS = [0.0, 0.005, 0.1, 0.5, 0.999]  # of 83 coordinates: none, none, 8, 41, 82


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("rho", [None, 0.2])
def test_equals_its_definition_over_all_parameters_in_float64(fraction, rho):
    model, lr = network(), 0.3
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    clip_coordinates(base, fraction)
    opt = base if rho is None else SAM(base, rho, 0.0)
    x, buffer = flat(model), torch.zeros_like(flat(model))
    for images, labels in batches(10):
        g = gradient(model, x, images, labels)
        if rho is not None:
            g = gradient(model, x + rho * g / g.norm(), images, labels)
        buffer = 0.9 * buffer + clipped(g, fraction)
        x = x - lr * buffer
        closure = closure_of(model, opt, images, labels)
        if rho is None:
            closure()
            opt.step()
        else:
            opt.step(closure)
        torch.testing.assert_close(flat(model), x, rtol=0, atol=1e-12)


def test_the_number_of_clipped_coordinates_and_their_signs():
    param = nn.Parameter(torch.zeros(1000))
    grad = param.grad = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    before = grad.clone()
    base = torch.optim.SGD([param], lr=1.0)
    clip_coordinates(base, 0.25)
    base.step()
    step = -param.detach()
    changed = step != before
    assert changed.sum() == 250
    assert torch.equal(step.sign(), before.sign())
    assert step[changed].abs().unique().tolist() == [np.quantile(before.abs().numpy(), 749 / 999, method="nearest")]
    assert torch.equal(grad, before)  # the tensor itself is not overwritten


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    param = nn.Parameter(torch.zeros(5, dtype=dtype))
    param.grad = torch.tensor([1.0, -8.0, 2.0, 0.5, -4.0], dtype=dtype)
    base = torch.optim.SGD([param], lr=1.0)
    clip_coordinates(base, 0.4)
    base.step()
    assert param.tolist() == [-1.0, 2.0, -2.0, -0.5, 2.0]


def test_dp_sat_ascends_along_the_gradient_before_clipping():
    model, lr, rho = network(), 0.3, 0.2
    base = torch.optim.SGD(model.parameters(), lr=lr)
    clip_coordinates(base, 0.5)
    opt = SAM(base, rho, 0.0, ascent="dp-sat")
    x, last = flat(model), torch.zeros_like(flat(model))
    for images, labels in batches(10):
        ascent = rho * last / last.norm() if last.any() else last
        last = gradient(model, x + ascent, images, labels)
        x = x - lr * clipped(last, 0.5)
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(flat(model), x, rtol=0, atol=1e-12)


def test_with_lsam_and_until_it_is_removed():
    model, lr = network(), 0.3
    base = torch.optim.SGD(model.parameters(), lr=lr)
    handle = clip_coordinates(base, 0.5)
    opt = LocalLSAM(base, LocalCenter(flat(model)), rho=0.0, period=100)
    for fraction, (x, y) in zip((0.5, 0.5, 0.0), batches(3), strict=True):
        if fraction == 0:
            handle.remove()
        before = flat(model)
        opt.step(closure_of(model, opt, x, y))
        expected = before - lr * clipped(gradient(model, before, x, y), fraction)
        torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-12)


def test_says_what_is_wrong_in_one_line():
    def attach(fraction=0.5, wrap=lambda base: base):
        base = torch.optim.SGD(network().parameters(), lr=0.1)
        clip_coordinates(wrap(base), fraction)
        return base

    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=f"^fraction: expected a number >= 0 and < 1, found {fraction}$"):
            attach(fraction)
    with pytest.raises(InputError, match=r"^base: expected the base optimizer, opt.base, found SAM$"):
        attach(wrap=SAM)
    line = r"^clip_coordinates: expected step\(\) without a closure, found one, which would run after it$"
    for step in (lambda base: base.step(lambda: 0.0), lambda base: base.step(closure=lambda: 0.0)):
        with pytest.raises(InputError, match=line):
            step(attach())
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        attach().step(None)
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    base = torch.optim.SGD(table.parameters(), lr=0.1)
    clip_coordinates(base, 0.5)
    with pytest.raises(InputError, match="expected dense gradients"):
        base.step()


def test_refuses_shards():
    from torch import distributed
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        param = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Shard(0)]))
        param.grad = DTensor.from_local(torch.ones(4), mesh, [Shard(0)])
        base = torch.optim.SGD([param], lr=0.1)
        clip_coordinates(base, 0.5)
        with pytest.raises(InputError, match=r"^clip_coordinates: expected whole gradients, found shards \(DTensor\)$"):
            base.step()
    finally:
        distributed.destroy_process_group()
