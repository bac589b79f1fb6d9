"""ConAdv against its formulas written out in float64, with BatchNorm by hand."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.samples import ConAdv, conadv_loss, split_batchnorm
from tests.helpers.problems import batches, flat, network

EPSILON, LR, RHO, GAMMA, MOMENTUM, EPS = 0.3, 0.2, 0.1, 1e-3, 0.1, 1e-5
EXACT = {"rtol": 0, "atol": 1e-12}


def normalized_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def by_hand(w, x, statistics=None):
    """Return the logits of `normalized_network` in training mode; update statistics, a list of mean and variance."""
    shapes = [(8, 6), (8,), (8,), (8,), (3, 8), (3,)]
    pieces = w.split([torch.Size(s).numel() for s in shapes])
    a, b, scale, shift, c, d = (piece.view(s) for piece, s in zip(pieces, shapes, strict=True))
    h = x @ a.T + b
    mean, variance = h.mean(0), h.var(0, correction=0)
    if statistics is not None:
        statistics[0] = (1 - MOMENTUM) * statistics[0] + MOMENTUM * mean.detach()
        statistics[1] = (1 - MOMENTUM) * statistics[1] + MOMENTUM * h.var(0, correction=1).detach()
    return torch.tanh((h - mean) / (variance + EPS).sqrt() * scale + shift) @ c.T + d


def attacked(w, x, y, low=-torch.inf, high=torch.inf):
    slope = torch.func.grad(lambda x: functional.cross_entropy(by_hand(w, x), y))(x)
    return (x + EPSILON * slope.sign()).clamp(low, high)


def mean_loss(w, x, y, x_adv, statistics=(None, None)):
    clean = functional.cross_entropy(by_hand(w, x, statistics[0]), y)
    return 0.5 * clean + 0.5 * functional.cross_entropy(by_hand(w, x_adv, statistics[1]), y)


def moved(w, *batch):
    g = torch.func.grad(mean_loss)(w, *batch)
    return w + RHO * g / (g.norm() + GAMMA)


def closure_of(model, opt, x, y, x_adv, seen=None):
    def closure():
        opt.zero_grad()
        if seen is not None:
            seen.append(x_adv)
        loss = conadv_loss(model, x, y, x_adv)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("limits", [{}, {"low": -0.5, "high": torch.full((6,), 0.7, dtype=torch.float64)}])
def test_follows_its_formulas(limits):
    model, seen = split_batchnorm(normalized_network()), []
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, GAMMA, model=model)
    data = list(batches(12))
    low, high = (-0.5, 0.7) if limits else (-torch.inf, torch.inf)
    now = before = flat(model)
    statistics = [[torch.zeros(8).double(), torch.ones(8).double()] for _ in range(2)]
    difference = 0.0
    for (x, y), batch in zip(data, ConAdv(data, model, EPSILON, **limits), strict=True):
        x_adv = attacked(before, x, y, low, high)
        assert torch.equal(batch[0], x)
        assert torch.equal(batch[1], y)
        torch.testing.assert_close(batch[2], x_adv, **EXACT)
        mean_loss(now, x, y, x_adv, statistics)  # the pass at x updates the statistics
        gradient = torch.func.grad(mean_loss)(moved(now, x, y, x_adv), x, y, x_adv)
        before, now = now, now - LR * gradient
        opt.step(closure_of(model, opt, *batch, seen))
        difference = max(difference, (flat(model) - now).abs().max().item())
        layer = model[1]
        for ours, theirs in zip((layer, layer.adversarial), statistics, strict=True):
            torch.testing.assert_close(ours.running_mean, theirs[0], **EXACT)
            torch.testing.assert_close(ours.running_var, theirs[1], **EXACT)
    assert difference < 1e-12, difference
    assert len(seen) == 24  # two passes per step, over the same inputs
    assert all(a is b for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert not torch.equal(*(s[0] for s in statistics))


def test_the_attack_leaves_gradients_statistics_and_inputs():
    model = split_batchnorm(normalized_network())
    data = list(batches(3))
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = data[0][0]
    kept = x.clone()
    with torch.no_grad():
        _, _, x_adv = next(ConAdv(data, model, EPSILON))
    assert all((p.grad == 7.0).all() for p in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert not x_adv.requires_grad
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, EPSILON), **EXACT)


def test_the_attack_is_on_the_layers_for_adversarial_inputs():
    model = split_batchnorm(normalized_network(), parameters=True)
    with torch.no_grad():
        model[1].weight.mul_(-3)
    x, y = next(batches(1))
    a, (scale, shift, *second), c = (tuple(model[i].parameters()) for i in (0, 1, 3))
    weights = {
        "clean": torch.cat([p.detach().reshape(-1) for p in (*a, scale, shift, *c)]),
        "adversarial": torch.cat([p.detach().reshape(-1) for p in (*a, *second, *c)]),
    }
    x_adv = ConAdv(batches(1), model, EPSILON).attack(x, y)
    torch.testing.assert_close(x_adv, attacked(weights["adversarial"], x, y), **EXACT)
    assert not torch.allclose(x_adv, attacked(weights["clean"], x, y))


def test_an_epsilon_of_0_without_batchnorm_is_the_clean_step():
    ours, theirs = network(), network()
    opt, other = (SAM(torch.optim.SGD(m.parameters(), lr=LR), RHO, GAMMA) for m in (ours, theirs))
    for x, y, x_adv in ConAdv(batches(5), ours, 0.0):
        opt.step(closure_of(ours, opt, x, y, x_adv))
    for x, y in batches(5):

        def closure(x=x, y=y):
            other.zero_grad()
            loss = functional.cross_entropy(theirs(x), y)
            loss.backward()
            return loss

        other.step(closure)
    torch.testing.assert_close(flat(ours), flat(theirs), **EXACT)


def test_yields_every_mini_batch_once_and_ends():
    model = network()
    for count in range(4):
        conadv = ConAdv(batches(count), model, EPSILON)
        assert [y.tolist() for _, y, _ in conadv] == [y.tolist() for _, y in batches(count)]
        assert next(conadv, None) is None


def test_resumes_to_the_bit():
    model = split_batchnorm(normalized_network())
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, model=model)
    data = list(batches(8))
    conadv = ConAdv(data, model, EPSILON)
    file = io.BytesIO()
    for step, batch in enumerate(conadv):
        opt.step(closure_of(model, opt, *batch))
        if step == 3:
            torch.save({"model": model.state_dict(), "conadv": conadv.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = split_batchnorm(normalized_network())
    resumed.load_state_dict(saved["model"])
    again = SAM(torch.optim.SGD(resumed.parameters(), lr=LR), RHO, model=resumed)
    conadv = ConAdv(data[5:], resumed, EPSILON)  # the state holds data[4]
    conadv.load_state_dict(saved["conadv"])
    for batch in conadv:
        again.step(closure_of(resumed, again, *batch))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf"), "large"])
def test_refuses_an_epsilon_out_of_range(epsilon):
    with pytest.raises(InputError) as caught:
        ConAdv(batches(1), network(), epsilon)
    assert str(caught.value) == f"epsilon: expected a finite number >= 0, found {epsilon!r}"
