"""After any sequence of calls, with failures in between, the parameters are not left perturbed."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lsam_hpc import SAM
from lsam_hpc.optim import masks
from lsam_hpc.options.ascent import ASCENTS

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
ACTIONS = ("backward", "perturb", "restore", "update", "zero_grad", "step", "failing step", "no backward", "state")


class ClosureError(Exception):
    """Raised by a closure."""


@st.composite
def problems(draw):
    """Draw groups of parameters, each with its own rho, and return an optimizer for them."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        shapes = draw(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        params = [
            nn.Parameter(torch.randn(shape).to(dtype), draw(st.booleans()) or i == 0) for i, shape in enumerate(shapes)
        ]
        groups.append({"params": params, "rho": draw(st.sampled_from([0.0, 0.1, 2.0]))})
    base = torch.optim.SGD(groups, lr=0.1, momentum=0.9) if draw(st.booleans()) else torch.optim.AdamW(groups, lr=0.1)
    mask = draw(st.sampled_from([masks.Mask(), masks.Random(0.5, 2), masks.SSAMD(5, 0.5, 2), masks.Tensors(0.5)]))
    metric = draw(st.sampled_from(["l2", "adaptive"]))
    return SAM(base, ascent=draw(st.sampled_from([a for a in ASCENTS if a != "center"])), metric=metric, mask=mask)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(opt=problems(), actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 3)), max_size=12))
def test_parameters_are_where_only_updates_have_put_them(opt, actions):
    params = opt.parameters
    x = [p.detach().clone() for p in params]  # where they should be when they are not perturbed
    updates = []
    plain = opt._descend
    opt._descend = lambda: (plain(), updates.append(1))

    def loss():
        return sum((p.float() ** 2).sum() for p in params if p.requires_grad)

    def closure(fail_at=0, silent=False):
        calls = []

        def inner(batch):
            calls.append(1)
            opt.zero_grad()
            if len(calls) == fail_at:
                raise ClosureError
            value = loss()
            if not silent:
                value.backward()
            return value

        return inner

    run = {
        "backward": lambda n: loss().backward(),
        "perturb": lambda n: opt.perturb(),
        "restore": lambda n: opt.restore(),
        "update": lambda n: opt.update(),
        "zero_grad": lambda n: opt.zero_grad(),
        "step": lambda n: opt.step(closure(), batch=torch.zeros(4)),
        "failing step": lambda n: opt.step(closure(fail_at=n), batch=torch.zeros(4)),
        "no backward": lambda n: opt.step(closure(silent=True), batch=torch.zeros(4)),
        "state": lambda n: opt.load_state_dict(opt.state_dict()),
    }
    for action, number in actions:
        held, before = opt.perturbation.active, len(updates)
        try:
            run[action](number)
        except (RuntimeError, ClosureError):
            assert opt.perturbation.active == held, f"{action} failed and left the parameters elsewhere"
        if len(updates) > before:
            assert not opt.perturbation.active
            x = [p.detach().clone() for p in params]
        if not opt.perturbation.active:
            assert all(torch.equal(p, v) for p, v in zip(params, x, strict=True)), action
    if opt.perturbation.active:
        opt.restore()
    assert all(torch.equal(p, v) for p, v in zip(params, x, strict=True))


@pytest.mark.parametrize("broken", ["_foreach_add_", "_foreach_mul_"])
def test_a_failure_inside_the_ascent_restores_the_parameters(monkeypatch, broken):
    p = nn.Parameter(torch.ones(4))
    opt = SAM(torch.optim.SGD([p], lr=0.1), 0.5, metric="adaptive")
    (p**3).sum().backward()
    real = getattr(torch, broken)

    def fails(*args, **kwargs):
        real(*args, **kwargs)
        if args[0][0] is p or broken == "_foreach_mul_":
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, broken, fails)
        with pytest.raises(MemoryError):
            opt.perturb()
    assert torch.equal(p.detach(), torch.ones(4))
    assert not opt.perturbation.active


def test_a_step_while_perturbed_is_refused_also_at_radius_0():
    p = nn.Parameter(torch.ones(1))
    opt = SAM(torch.optim.SGD([p], lr=0.1), rho=0.0)
    opt.param_groups[0]["rho"] = 0.5
    p.square().sum().backward()
    opt.perturb()
    opt.param_groups[0]["rho"] = 0.0
    with pytest.raises(RuntimeError, match=r"step: the parameters are perturbed: call restore\(\) first"):
        opt.step(lambda: None)
    opt.restore()
    assert p.item() == 1
