"""ESAM's weight perturbation against a transcription of the authors' code, and the backward work that it saves."""

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.masks import Tensors
from tests.helpers.masked import METRICS, trained
from tests.helpers.problems import batches, closure_of, flat, network, step_on

SEED, BETA = 3, 0.5


def left_out(step, count):
    """Return which tensors the authors' code leaves out: drawn after the step before, none in the first step."""
    if step == 0:
        return [False] * count
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    drawn = [bool(torch.rand((), generator=generator, dtype=torch.float64) > BETA) for _ in range(count)]
    return drawn if not all(drawn) else [False] * count


@pytest.mark.parametrize("metric", METRICS)
def test_a_step_equals_the_authors_code(metric):
    sizes = [p.numel() for p in network().parameters()]

    def factors(step, x, g, at):
        out = left_out(step, len(sizes))
        return torch.cat([torch.full((size,), (not o) / BETA) for size, o in zip(sizes, out, strict=True)])

    differences = trained(14, lambda model: Tensors(BETA, SEED), factors, metric=metric, selected_norm=True)
    assert max(differences) <= 1e-12
    drawn = [left_out(step, len(sizes)) for step in range(14)]
    assert len({tuple(out) for out in drawn}) > 4


def test_backward_skips_the_gradients_that_are_left_out():
    """A tensor's gradient is accumulated in both passes of a step; in one only if the ascent leaves it out."""
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=Tensors(BETA, SEED))
    computed = []
    for number, p in enumerate(model.parameters()):
        p.register_post_accumulate_grad_hook(lambda _, number=number: computed.append(number))
    for step, (x, y) in enumerate(batches(8)):
        computed.clear()
        opt.step(closure_of(model, opt, x, y))
        assert [computed.count(number) for number in range(4)] == [1 if out else 2 for out in left_out(step, 4)]
        assert all(p.requires_grad for p in model.parameters())


def test_backward_does_not_multiply_for_the_gradients_that_are_left_out():
    """The matrix product of a weight's gradient is not run: the profiler counts one fewer for each such weight."""
    model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(4)]).double()
    mask = Tensors(BETA, SEED)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=mask)
    x = torch.randn(5, 8, dtype=torch.float64)

    def closure():
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    counts = []
    for step in range(6):
        out = left_out(step, 4)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            opt.step(closure)
        products = sum(event.count for event in profile.key_averages() if event.key == "aten::mm")
        # Passes forward: 2 x 4; weights' gradients: 2 x 4 less those left out; inputs' gradients from the last layer to
        # the first of which the weight has one.
        first = out.index(False)
        counts.append(products - (8 + 8 - sum(out) + 3 + 3 - first))
    assert counts == [0] * 6


@pytest.mark.parametrize(("ascent", "passes"), [("dp-sat", 6), ("sampa", 11), ("gam", 24)])
def test_other_ascents_compute_all_gradients(ascent, passes):
    model, computed = network(), []
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=Tensors(BETA, SEED), ascent=ascent)
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: computed.append(1))
    for x, y in batches(6):
        step_on(model, opt, x, y)
    assert len(computed) == 4 * passes


def test_in_phases_the_step_is_the_same_and_masked_saves_the_work():
    results = []
    for way in ("closure", "phases", "masked"):
        model, computed = network(), []
        opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=Tensors(BETA, SEED))
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda _, computed=computed: computed.append(1))
        for x, y in batches(6):
            closure = closure_of(model, opt, x, y)
            if way == "closure":
                opt.step(closure)
                continue
            if way == "masked":
                with opt.masked():
                    phases(opt, closure)
            else:
                phases(opt, closure)
            opt.update()
        results.append((flat(model), len(computed)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][0], results[2][0])
    saved = sum(sum(left_out(step, 4)) for step in range(6))
    assert [count for _, count in results] == [48 - saved, 48, 48 - saved]


def phases(opt, closure):
    closure()
    opt.perturb()
    closure()
    opt.restore()


def test_a_radius_of_0_is_the_base_optimizer():
    model, plain = network(), network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.0, mask=Tensors(BETA, SEED))
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches(6):
        opt.step(closure_of(model, opt, x, y))
        base.step(closure_of(plain, base, x, y))
    assert torch.equal(flat(model), flat(plain))


def test_a_draw_that_leaves_out_all_leaves_out_none():
    x = nn.Parameter(torch.ones(3))
    opt = SAM(torch.optim.SGD([x], lr=0.1), 0.1, mask=Tensors(0.01))

    def closure():
        opt.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        opt.step(closure)
        assert opt.perturbation_norm > 0


def test_a_wrong_density_is_refused():
    with pytest.raises(InputError, match=r"^mask: expected a density > 0 and <= 1, found 0$"):
        Tensors(0)
