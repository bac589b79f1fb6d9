"""AUSAM's selection against its formula written out, and its bias over many draws."""

import io

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim.samples import AUSAM, sample_step
from tests.helpers.problems import batches, flat, network
from tests.helpers.samples import EXACT, LR, ascent_of, losses_of, optimizer, sample_losses, uniform, weighted_gradient


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
    selection = AUSAM(0.75, floor=0.2)
    if weighted:
        ascent, clean, perturbed = torch.linspace(0.01, 0.1, 48, dtype=torch.float64).view(3, 16)
    else:
        ascent, clean, perturbed = uniform(16), torch.zeros(16), uniform(16)
    generator = torch.Generator().manual_seed(3)
    for x, y in batches(20):
        ids = torch.randperm(40, generator=generator)[:16]
        p = probabilities(history, ids.tolist(), 0.75, 0.2)
        certain += int((p == 1).sum())
        seen = []

        def weighting(losses, seen=seen):
            seen.append(losses)
            return ascent, clean, perturbed

        options = {"weighting": weighting} if weighted else {}
        returned = sample_step(opt, losses_of(model, x, y, calls), ids=ids, selection=selection, **options)
        assert torch.equal(calls[-2], calls[-1])  # both passes are over the same samples
        chosen = calls[-1]
        assert len(set(chosen.tolist())) == 12
        drawn = torch.zeros(16, dtype=torch.float64)
        drawn[chosen] = 1 / p[chosen]
        moved = at + ascent_of(model, at, x, y, ascent * drawn)
        before = sample_losses(model, at, x, y)
        change = (sample_losses(model, moved, x, y) - before).abs()
        for i in chosen.tolist():
            history.setdefault(int(ids[i]), []).append(float(change[i]))
        at = at - LR * weighted_gradient(model, at, x, y, clean * drawn)
        at = at - LR * weighted_gradient(model, moved, x, y, perturbed * drawn)
        torch.testing.assert_close(flat(model), at, **EXACT)
        torch.testing.assert_close(returned, (uniform(16) * drawn * before).sum(), **EXACT)
        if weighted:
            torch.testing.assert_close(seen[0], torch.where(drawn > 0, before, torch.nan), equal_nan=True, **EXACT)
    assert certain > 0  # some probabilities were capped at 1
    assert len(calls) == 40


@pytest.mark.slow("a statistical trial of 5 s")
def test_ausam_is_unbiased():
    """4 sigma on each of 83 + 16 numbers: a false alarm has probability < 99 * 6.4e-5 = 0.0064; fixed seed."""
    model, draws, n = network(), 20_000, 16
    x, y = next(batches(1))
    at = flat(model) + 0.1  # any point: x, or x + e
    ids, selection = torch.arange(n), AUSAM(0.25, generator=torch.Generator().manual_seed(5))
    selection.learn(ids, ids, torch.arange(n, dtype=torch.float64) ** 6)  # steep: probabilities from 0.025 to 1
    p = selection.probabilities(ids)
    weights = torch.zeros(draws, n, dtype=torch.float64)
    for row in weights:
        chosen, factors = selection.choose_first(ids)
        row[chosen] = factors / n
    assert p.min() < 0.05
    assert (p == 1).any()
    hits = (weights > 0).double()
    assert (hits.sum(1) == 4).all()
    assert ((hits.mean(0) - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()
    per_sample = torch.stack([weighted_gradient(model, at, x[i : i + 1], y[i : i + 1], 1.0) for i in range(n)])
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


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, "the dataset indices of all samples in a 1-D integer tensor, found None"),
        (torch.ones(2), "the dataset indices of all samples in a 1-D integer tensor, found torch.float32 of shape"),
        (torch.ones(2, 2).long(), "the dataset indices of all samples in a 1-D integer tensor, found torch.int64 of"),
        (torch.arange(16) - 1, "dataset indices >= 0, found -1"),
    ],
)
def test_refuses_wrong_ids(ids, message):
    model = network()
    before = flat(model)
    with pytest.raises(InputError) as caught:
        sample_step(optimizer(model), losses_of(model, *next(batches(1))), selection=AUSAM(0.5), ids=ids)
    assert str(caught.value).startswith(f"ids: expected {message}")
    assert torch.equal(flat(model), before)
