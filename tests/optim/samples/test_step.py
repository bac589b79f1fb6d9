"""The step with selected and weighted samples; Focal-SAM against its formulas written out."""

import re
import subprocess
import sys

import pytest
import torch

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.samples import AUSAM, ESAM, Chosen, Selection, sample_step
from tests.helpers.mpis import ROOT
from tests.helpers.problems import batches, closure_of, flat, network
from tests.helpers.samples import (
    EXACT,
    GAMMA,
    LR,
    RHO,
    ascent_of,
    losses_of,
    optimizer,
    sample_losses,
    uniform,
    weighted_gradient,
)


def test_without_options_equals_sam():
    ours, theirs = network(), network()
    opt, sam = optimizer(ours), optimizer(theirs)
    for x, y in batches(10):
        loss = sample_step(opt, losses_of(ours, x, y))
        expected = sam.step(closure_of(theirs, sam, x, y))
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(flat(ours), flat(theirs), **EXACT)


def test_earlier_gradients_and_no_grad_mode_change_nothing():
    ours, theirs = network(), network()
    opt, other = optimizer(ours), optimizer(theirs)
    x, y = next(batches(1))
    losses_of(ours, x, y)(None).sum().backward()
    with torch.no_grad():
        sample_step(opt, losses_of(ours, x, y))
    sample_step(other, losses_of(theirs, x, y))
    assert torch.equal(flat(ours), flat(theirs))


@pytest.mark.parametrize("selection", [ESAM(1), AUSAM(1)])
def test_a_fraction_of_1_equals_sam_without_an_extra_pass(selection):
    ours, theirs, calls = network(), network(), []
    opt, other = optimizer(ours), optimizer(theirs)
    for step, (x, y) in enumerate(batches(5)):
        sample_step(opt, losses_of(ours, x, y, calls), selection=selection, ids=torch.arange(16) + step)
        sample_step(other, losses_of(theirs, x, y))
    assert len(calls) == 10
    torch.testing.assert_close(flat(ours), flat(theirs), **EXACT)


@pytest.mark.parametrize("selection", [None, ESAM(0.5)])
def test_each_weight_multiplies_the_losses_of_its_pass(selection):
    model, calls = network(), []
    opt, at = optimizer(model), flat(model)
    weights = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ascent, clean_weight, perturbed_weight = weights
    for x, y in batches(10):
        moved = at + ascent_of(model, at, x, y, ascent)
        change = sample_losses(model, moved, x, y) - sample_losses(model, at, x, y)
        top = (change >= change.median() + 1e-15).double() if selection else torch.ones(16, dtype=torch.float64)
        step = weighted_gradient(model, at, x, y, clean_weight)
        step += weighted_gradient(model, moved, x, y, perturbed_weight * top * 16 / top.sum())
        at = at - LR * step
        seen = []

        def weighting(before, seen=seen):
            seen.append(before)
            return weights

        sample_step(opt, losses_of(model, x, y, calls), selection=selection, weighting=weighting)
        assert not seen[0].requires_grad
        torch.testing.assert_close(flat(model), at, **EXACT)


def test_a_clean_weight_of_none_or_zero_saves_a_backward_pass():
    model = network()
    opt, backwards = optimizer(model), []
    model[0].bias.register_post_accumulate_grad_hook(backwards.append)
    x, y = next(batches(1))
    for clean_weight, passes in ((None, 2), (torch.zeros(16), 2), (uniform(16), 3)):
        backwards.clear()
        weights = (uniform(16), clean_weight, uniform(16))
        sample_step(opt, losses_of(model, x, y), weighting=lambda before, weights=weights: weights)
        assert len(backwards) == passes


def test_a_parameter_used_only_at_x_gets_the_gradient_with_the_clean_weight():
    a, b = (torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    opt = SAM(torch.optim.SGD([a, b], lr=0.1), rho=0.0)
    one = torch.ones(2, dtype=torch.float64)

    def losses(chosen):
        return torch.cat([3 * a, 5 * b]) if chosen is None else 3 * a

    class First(Selection):
        def choose_second(self, before, losses, ids):
            return Chosen(torch.tensor([0]), before.new_ones(1))

    sample_step(opt, losses, selection=First(0.5), weighting=lambda before: (one, one, one))
    assert a.item() == pytest.approx(1 - 0.1 * (3 + 3), abs=1e-15)
    assert b.item() == pytest.approx(1 - 0.1 * 5, abs=1e-15)


def test_focal_sam_in_the_docs_follows_the_paper():
    page = (ROOT / "docs" / "howto" / "samples.md").read_text()
    setup, _, steps, *_ = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    exec(setup, names)
    model, images, labels = names["model"], names["images"], names["labels"]
    at = start = flat(model)
    exec(steps, names)
    gamma, lam, lr, rho = 2.0, 0.8, 0.1, 0.05
    share = [(labels == c).double().mean() for c in range(3)]
    for x, y in zip(images.split(50), labels.split(50), strict=True):

        def focal_loss(v, x=x, y=y):
            losses = sample_losses(model, v, x, y)
            return sum((1 - share[c]) ** gamma * (losses * (y == c)).sum() / len(y) for c in range(3))

        def plain_loss(v, x=x, y=y):
            return sample_losses(model, v, x, y).mean()

        g = torch.func.grad(focal_loss)(at)
        step = torch.func.grad(lambda v: plain_loss(v) - lam * focal_loss(v))(at)
        at = at - lr * (step + lam * torch.func.grad(focal_loss)(at + rho * g / g.norm()))
    assert (at - start).norm() > 0.01
    torch.testing.assert_close(flat(model), at, **EXACT)


class Broken(Selection):
    """Fails at the perturbed point."""

    def choose_second(self, before, losses, ids):
        raise KeyError("selection")


@pytest.mark.parametrize("where", ["selection", "losses", "backward", "shape"])
def test_parameters_are_restored_when_the_second_pass_fails(where):
    model, calls = network(), []
    opt, before = optimizer(model), flat(model)
    x, y = next(batches(1))
    good = losses_of(model, x, y)

    def fail(grad):
        raise KeyError("backward")

    def losses(chosen):
        calls.append(flat(model))
        if len(calls) == 1 or where == "selection":
            return good(chosen)
        if where == "losses":
            raise KeyError("losses")
        result = good(chosen)
        if where == "backward":
            result.register_hook(fail)
            return result
        return result[1:]

    with pytest.raises(InputError if where == "shape" else KeyError):
        sample_step(opt, losses, selection=Broken(0.5) if where == "selection" else None)
    assert len(calls) == 1 or not torch.equal(calls[1], before)
    assert torch.equal(flat(model), before)
    sample_step(opt, good)  # the next step works
    other = network()
    sample_step(optimizer(other), losses_of(other, x, y))
    assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan"), float("inf"), "half", True, None])
@pytest.mark.parametrize(
    ("name", "make"), [("fraction", ESAM), ("fraction", AUSAM), ("floor", lambda v: AUSAM(0.5, floor=v))]
)
def test_refuses_fractions_out_of_range(name, make, fraction):
    with pytest.raises(InputError) as caught:
        make(fraction)
    assert str(caught.value) == f"{name}: expected a number > 0 and <= 1, found {fraction!r}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weighting": lambda before: (before, None, before[1:])},
            "weighting: expected weights of shape (16,), found perturbed_weight of shape (15,)",
        ),
        (
            {"weighting": lambda before: (before, before[:, None], before)},
            "weighting: expected weights of shape (16,), found clean_weight of shape (16, 1)",
        ),
        (
            {"weighting": lambda before: (before.mean(), None, before)},
            "weighting: expected weights of shape (16,), found ascent of shape ()",
        ),
    ],
)
def test_refuses_wrong_arguments(options, message):
    model = network()
    x, y = next(batches(1))
    before = flat(model)
    with pytest.raises(InputError) as caught:
        sample_step(optimizer(model), losses_of(model, x, y), **options)
    assert str(caught.value) == message
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.mean(), "losses: expected one loss per sample in a 1-D tensor, found shape ()"),
        (lambda v: v[:, None], "losses: expected one loss per sample in a 1-D tensor, found shape (16, 1)"),
        (lambda v: v[:0], "losses: expected one loss per sample in a 1-D tensor, found shape (0,)"),
    ],
)
def test_refuses_losses_of_a_wrong_shape(change, message):
    model = network()
    losses = losses_of(model, *next(batches(1)))
    with pytest.raises(InputError) as caught:
        sample_step(optimizer(model), lambda chosen: change(losses(chosen)))
    assert str(caught.value) == message


def test_refuses_losses_that_ignore_the_selection():
    model = network()
    losses = losses_of(model, *next(batches(1)))
    with pytest.raises(InputError, match=r"^losses: expected 8 losses in a 1-D tensor, found shape \(16,\)$"):
        sample_step(optimizer(model), lambda chosen: losses(None), selection=ESAM(0.5))


def test_refuses_an_ascent_without_a_pass_at_x():
    model = network()
    with pytest.raises(InputError, match=r"^opt: expected the ascent 'sam', found 'dp-sat'$"):
        sample_step(optimizer(model, ascent="dp-sat"), losses_of(model, *next(batches(1))))


def with_momentum(model):
    return SAM(torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9), RHO, GAMMA)


@pytest.mark.parametrize("selection", [None, ESAM, AUSAM])
@pytest.mark.parametrize("clean", [0.0, 0.02])
def test_a_scaler_changes_nothing_but_the_scale(selection, clean):
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)):
        model = network()
        opt = with_momentum(model)
        chosen = selection and selection(0.5)
        for step, (x, y) in enumerate(batches(10)):
            sample_step(
                opt,
                losses_of(model, x, y),
                ids=torch.arange(16) + step,
                selection=chosen,
                weighting=lambda before: (uniform(16), torch.full((16,), clean), uniform(16)),
                scaler=scaler,
            )
            if scaler is not None:
                scaler.update()
        results.append(flat(model))
    assert scaler.get_scale() > 2.0**16
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize("selection", [None, ESAM, AUSAM])
@pytest.mark.parametrize("overflowing", ["first", "clean", "second"])
def test_an_overflow_in_either_pass_skips_the_step(selection, overflowing):
    model, fresh = network(), network()
    before = flat(model)
    chosen, again = (selection and selection(0.5) for _ in range(2))
    opt, ids = with_momentum(model), torch.arange(16)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    (x, y), (next_x, next_y) = batches(2)
    good, calls = losses_of(model, x, y), []

    def losses(samples):
        calls.append(torch.is_grad_enabled())
        result = good(samples)
        if calls[-1] and sum(calls) == 2 and overflowing == "second":  # in autograd mode: not ESAM's selection
            result.register_hook(lambda grad: grad * torch.inf)
        return result

    weights = {name: uniform(16) for name in ("first", "clean", "second")}
    if overflowing != "second":
        weights[overflowing] = uniform(16) * 1e308
    sample_step(opt, losses, ids=ids, selection=chosen, weighting=lambda _: tuple(weights.values()), scaler=scaler)
    scaler.update()
    assert torch.equal(flat(model), before)
    assert not opt.state
    assert scaler.get_scale() == 2.0**9
    if selection is AUSAM and overflowing == "first":  # nothing was learned from a step that did not ascend
        assert not chosen.state_dict()["visits"].any()
    # The next step is a first step, apart from what the selection learned and drew.
    if chosen is not None:
        again.load_state_dict(chosen.state_dict())
    sample_step(opt, losses_of(model, next_x, next_y), ids=ids, selection=chosen, scaler=scaler)
    sample_step(with_momentum(fresh), losses_of(fresh, next_x, next_y), ids=ids, selection=again)
    torch.testing.assert_close(flat(model), flat(fresh), **EXACT)


PROGRAM = """
import datetime, os, sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from lsam_hpc.optim.samples import sample_step
from tests.helpers.problems import batches, flat, network
from tests.helpers.samples import losses_of, optimizer
rank, folder, views = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "views"
distributed.init_process_group(
    "gloo", f"file://{folder}/meet", datetime.timedelta(seconds=60), world_size=2, rank=rank
)
model = network()
opt, wrapped = optimizer(model), DistributedDataParallel(model, gradient_as_bucket_view=views)
for step, (x, y) in enumerate(batches(10)):
    mine = slice(8 * rank, 8 * rank + 8)
    weights = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(step))[:, mine]
    sample_step(opt, losses_of(wrapped, x[mine], y[mine]), weighting=lambda before: tuple(2 * weights))
torch.save(flat(model), f"{folder}/{rank}.pt")
distributed.barrier()
os._exit(0)  # a normal exit may abort in gloo's threads
"""


@pytest.mark.parametrize("grads", ["copies", "views"])
def test_data_parallel_ranks_average_the_gradients_of_all_three_weights(tmp_path, grads):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path), grads], cwd=ROOT, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    errors = [job.communicate(timeout=120)[1].decode() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    model = network()
    opt = optimizer(model)
    for step, (x, y) in enumerate(batches(10)):
        weights = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        sample_step(opt, losses_of(model, x, y), weighting=lambda before, weights=weights: tuple(weights))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), flat(model), **EXACT)
