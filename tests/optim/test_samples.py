"""ESAM, AUSAM and Focal-SAM against their formulas written out."""

import io
import re

import pytest
import torch
from torch.nn import functional

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.samples import AUSAM, ESAM, Selection, sample_step
from tests.helpers.mpis import ROOT
from tests.helpers.problems import batches, closure_of, flat, network

LR, RHO, GAMMA = 0.3, 0.2, 1e-3
EXACT = {"rtol": 0, "atol": 1e-12}


def optimizer(model, **options):
    return SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, GAMMA, **options)


def losses_of(model, x, y, calls=None):
    """Return the function `losses`; append the argument of each call to `calls`."""

    def losses(chosen):
        if calls is not None:
            calls.append(chosen)
        a, b = (x, y) if chosen is None else (x[chosen], y[chosen])
        return functional.cross_entropy(model(a), b, reduction="none")

    return losses


def sample_losses(model, at, x, y):
    """Return the losses of the samples at a vector of parameters, by functional calls alone."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    pieces = at.split([s.numel() for s in shapes.values()])
    params = {n: v.view(s) for (n, s), v in zip(shapes.items(), pieces, strict=True)}
    return functional.cross_entropy(torch.func.functional_call(model, params, (x,)), y, reduction="none")


def weighted_gradient(model, at, x, y, weights):
    """Return grad sum_i weights_i l_i at a vector of parameters."""
    return torch.func.grad(lambda v: (weights * sample_losses(model, v, x, y)).sum())(at)


def ascent_of(model, at, x, y, weights):
    g = weighted_gradient(model, at, x, y, weights)
    return RHO * g / (g.norm() + GAMMA)


def uniform(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


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


@pytest.mark.parametrize("selection", [ESAM(1), AUSAM(1)])
def test_a_fraction_of_1_equals_sam_without_an_extra_pass(selection):
    ours, theirs, calls = network(), network(), []
    opt, other = optimizer(ours), optimizer(theirs)
    for step, (x, y) in enumerate(batches(5)):
        sample_step(opt, losses_of(ours, x, y, calls), selection=selection, ids=torch.arange(16) + step)
        sample_step(other, losses_of(theirs, x, y))
    assert len(calls) == 10
    torch.testing.assert_close(flat(ours), flat(theirs), **EXACT)


def probabilities(history, ids, fraction, floor):
    """Return AUSAM's p_i, with c found by bisection; history: dataset index -> its DLPs."""
    mean = [sum(history[i]) / len(history[i]) if history.get(i) else None for i in ids]
    known = [m for m in mean if m is not None]
    adlp = [(sum(known) / len(known) if known else 1.0) if m is None else m for m in mean]
    q = [floor + (1 - floor) * a / (sum(adlp) / len(adlp)) for a in adlp]
    low, high = 0.0, 1 / min(q)
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if sum(min(1.0, c * v) for v in q) < round(fraction * len(q)) else (low, c)
    return torch.tensor([min(1.0, high * v) for v in q], dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_ausam_follows_its_formula(weighted):
    model, calls, history, certain = network(), [], {}, 0
    opt, at = optimizer(model), flat(model)
    selection = AUSAM(0.5, floor=0.2)
    perturbed_weight = torch.linspace(0.01, 0.1, 16, dtype=torch.float64) if weighted else uniform(16)
    weighting = (lambda before: (uniform(16), None, perturbed_weight)) if weighted else None
    generator = torch.Generator().manual_seed(3)
    for x, y in batches(20):
        ids = torch.randperm(40, generator=generator)[:16]
        p = probabilities(history, ids.tolist(), 0.5, 0.2)
        certain += int((p == 1).sum())
        sample_step(opt, losses_of(model, x, y, calls), ids=ids, selection=selection, weighting=weighting)
        chosen = calls[-1]
        assert len(set(chosen.tolist())) == 8
        moved = at + ascent_of(model, at, x, y, uniform(16))
        change = (sample_losses(model, moved, x, y) - sample_losses(model, at, x, y)).abs()
        for i in chosen.tolist():
            history.setdefault(int(ids[i]), []).append(float(change[i]))
        weights = torch.zeros(16, dtype=torch.float64)
        weights[chosen] = perturbed_weight[chosen] / p[chosen]
        at = at - LR * weighted_gradient(model, moved, x, y, weights)
        torch.testing.assert_close(flat(model), at, **EXACT)
    assert certain > 0  # some probabilities were capped at 1
    assert len(calls) == 40


@pytest.mark.slow("a statistical trial of 5 s")
def test_ausam_is_unbiased():
    """4 sigma on each of 83 + 16 numbers: a false alarm has probability < 99 * 6.4e-5 = 0.0064; fixed seed."""
    model, draws, n = network(), 20_000, 16
    x, y = next(batches(1))
    ids, selection = torch.arange(n), AUSAM(0.25, generator=torch.Generator().manual_seed(5))
    selection.learn(ids, ids, torch.arange(n, dtype=torch.float64) ** 6)  # steep: probabilities from 0.025 to 1
    p = selection.probabilities(ids)
    before = sample_losses(model, flat(model), x, y)
    weights = torch.zeros(draws, n, dtype=torch.float64)
    for row in weights:
        chosen, factors = selection.choose(before, None, ids)
        row[chosen] = factors / n
    assert p.min() < 0.05
    assert (p == 1).any()
    hits = (weights > 0).double()
    assert (hits.sum(1) == 4).all()
    assert ((hits.mean(0) - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()
    per_sample = torch.stack([weighted_gradient(model, flat(model), x[i : i + 1], y[i : i + 1], 1.0) for i in range(n)])
    estimates = weights @ per_sample
    error = (estimates.mean(0) - per_sample.mean(0)).abs()
    assert (error <= 4 * estimates.std(0) / draws**0.5).all()


def run(steps, selection, model, opt, start=0):
    calls = []
    for step, (x, y) in enumerate(batches(steps)):
        if step >= start:
            ids = (torch.arange(16) * 7 + step) % 50
            sample_step(opt, losses_of(model, x, y, calls), ids=ids, selection=selection)
    return calls


def test_ausam_is_determined_by_its_generator():
    def result(seed):
        model = network()
        torch.seed()  # torch's global generator must not matter
        run(10, AUSAM(0.5, generator=torch.Generator().manual_seed(seed)), model, optimizer(model))
        return flat(model)

    assert torch.equal(result(1), result(1))
    assert not torch.equal(result(1), result(2))


def test_ausam_resumes_to_the_bit():
    model, selection = network(), AUSAM(0.5)
    opt = optimizer(model)
    run(10, selection, model, opt)
    half, before = network(), AUSAM(0.5)
    run(5, before, half, optimizer(half))
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    resumed = AUSAM(0.5, generator=torch.Generator().manual_seed(99))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(10, resumed, half, optimizer(half), start=5)
    assert torch.equal(flat(half), flat(model))


def test_ausam_handles_samples_without_an_average():
    ids = torch.tensor([3, 3, 0, 9], dtype=torch.int32)
    selection = AUSAM(0.5)
    selection.learn(ids, torch.arange(4), torch.tensor([float("nan"), float("inf"), 0.0, 0.0]))
    half = torch.full((4,), 0.5, dtype=torch.float64)
    assert torch.equal(selection.probabilities(ids), half)
    selection.learn(ids, torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))  # a sample that occurs twice counts twice
    expected = probabilities({3: [2.0, 4.0], 0: [0.0], 9: [0.0]}, ids.tolist(), 0.5, 0.1)
    torch.testing.assert_close(selection.probabilities(ids), expected, **EXACT)


def test_a_selection_without_memory_has_no_state():
    selection = ESAM(0.5)
    selection.load_state_dict(selection.state_dict())
    assert selection.state_dict() == {}


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
        def choose(self, before, losses, ids):
            return torch.tensor([0]), before.new_ones(1)

    sample_step(opt, losses, selection=First(0.5), weighting=lambda before: (one, one, one))
    assert a.item() == pytest.approx(1 - 0.1 * (3 + 3), abs=1e-15)
    assert b.item() == pytest.approx(1 - 0.1 * 5, abs=1e-15)


def test_focal_sam_in_the_docs_follows_the_paper():
    setup, steps = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "samples.md").read_text(), flags=re.DOTALL)
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

    def choose(self, before, losses, ids):
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


IDS = "ids: expected 16 dataset indices >= 0 in a 1-D tensor, found "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": AUSAM(0.5)}, IDS + "None"),
        ({"selection": AUSAM(0.5), "ids": torch.arange(3)}, IDS + "torch.int64 of shape (3,): [0, 1, 2]"),
        ({"selection": AUSAM(0.5), "ids": torch.ones(2)}, IDS + "torch.float32 of shape (2,): [1.0, 1.0]"),
        (
            {"selection": AUSAM(0.5), "ids": torch.arange(16) - 1},
            IDS + "torch.int64 of shape (16,): [-1, 0, 1, 2, 3, 4, 5, 6]",
        ),
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
