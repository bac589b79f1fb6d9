"""SL-SAM: the bandit against its definition, the sampling against its probabilities, and the layers of a step."""

import itertools
import math

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.masks import SLSAM
from lsam_hpc.optim.masks.sl_sam import probabilities
from tests.helpers.masked import GAMMA, LR, METRICS, RHO
from tests.helpers.problems import batches, closure_of, flat, gradient

LAYERS = 5
EXPLORATION = 0.3


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def layer_of():
    """Return the layer of each coordinate."""
    indices = {"0": 0, "2": 1, "3": 2, "4": 3, "6": 4}
    return torch.cat([torch.full((p.numel(),), indices[name[0]]) for name, p in network().named_parameters()])


def exp3(weights, gamma):
    """Auer et al. 2002, figure 1: the probabilities of one play."""
    total = sum(weights)
    return [(1 - gamma) * w / total + gamma / len(weights) for w in weights], [False] * len(weights)


def exp3_m(weights, k, gamma):
    """Uchiya et al. 2010, algorithm 2: the probabilities of k plays, and the arms whose weight is replaced."""
    arms = len(weights)
    share = (1 / k - gamma / arms) / (1 - gamma)
    replaced = [False] * arms
    if max(weights) >= share * sum(weights):
        # Bisection for the alpha with alpha = share * (sum of the weights, of which none counts more than alpha).
        low, high = 0.0, max(weights)
        for _ in range(2000):
            alpha = (low + high) / 2
            if alpha < share * sum(min(w, alpha) for w in weights):
                low = alpha
            else:
                high = alpha
        replaced = [w >= high * (1 - 1e-13) for w in weights]
        weights = [min(w, high) for w in weights]
    total = sum(weights)
    return [k * ((1 - gamma) * w / total + gamma / arms) for w in weights], replaced


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_a_step_equals_the_definition(k, metric):
    model = network()
    mask = SLSAM(model, k / LAYERS, exploration=EXPLORATION, seed=1)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR, weight_decay=0.1), RHO, GAMMA, metric=metric, mask=mask)
    weights, most, layer, chosen_ever, replaced_ever = [1.0] * LAYERS, 0.0, layer_of(), set(), False
    for images, labels in batches(25):
        p, replaced = exp3(weights, EXPLORATION) if k == 1 else exp3_m(weights, k, EXPLORATION)
        replaced_ever |= any(replaced)
        torch.testing.assert_close(mask.probabilities, torch.tensor(p, dtype=torch.float64), rtol=0, atol=1e-12)
        selected = list(mask.selected)
        assert len(selected) == k
        chosen_ever |= set(selected)
        active = torch.isin(layer, torch.tensor(selected)).double()
        x = flat(model)
        scale = x.abs() + 0.01 if metric == "adaptive" else torch.ones_like(x)
        g = gradient(model, x, images, labels) * active
        descent = gradient(model, x + RHO * scale**2 * g / ((scale * g).norm() + GAMMA), images, labels)
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(flat(model), x - LR * active * (descent + 0.1 * x), rtol=0, atol=1e-12)
        assert torch.equal(flat(model)[active == 0], x[active == 0])
        norms = {i: descent[layer == i].norm().item() for i in selected}
        most = max(most, *norms.values())
        for i, norm in norms.items():
            if not replaced[i]:
                weights[i] *= math.exp(k * EXPLORATION / LAYERS * norm / most / p[i])
    assert len(chosen_ever) == LAYERS
    assert max(weights) > 1.2 * min(weights) or k == LAYERS
    assert replaced_ever == (k > 2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_probabilities_are_from_gamma_k_over_arms_to_1_and_sum_to_k(k):
    for logs in ([0.0] * 5, [0.0, 1.0, 5.0, 9.0, 2.0], [0.0, 800.0, 799.0, 0.0, -800.0], [3.0, 3.0, 0.0, 0.0, 0.0]):
        for exploration in (0.01, 0.5, 1.0):
            p, capped = probabilities(torch.tensor(logs, dtype=torch.float64), k, exploration)
            assert abs(p.sum() - k) < 1e-12
            assert (p >= exploration * k / 5 - 1e-12).all()
            assert (p <= 1 + 1e-12).all()
            assert bool((p[capped] == 1).all())
            order = torch.tensor(logs).argsort()
            assert (p[order].diff() >= -1e-12).all()


@pytest.mark.parametrize("k", [1, 3])
def test_layers_are_drawn_with_their_probabilities(k):
    """z-test of each layer's frequency in 4,000 draws: with 5 layers and |z| < 4.2 it fails by chance 1.4e-4 times."""
    mask = SLSAM(network(), k / LAYERS, exploration=EXPLORATION)
    mask._logs = torch.tensor([0.0, 0.3, -0.2, 0.8, -0.5], dtype=torch.float64)
    trials, counts = 4000, torch.zeros(LAYERS)
    for _ in range(trials):
        mask.end_step([])
        assert len(mask.selected) == k
        counts[mask.selected] += 1
    p = mask.probabilities
    assert p.std() > 0.05
    z = (counts - trials * p) / (trials * p * (1 - p)).sqrt()
    assert z.abs().max() < 4.2


def test_backward_skips_the_layers_that_are_not_selected_in_both_passes():
    model, computed = network(), []
    mask = SLSAM(model, 0.4)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=mask)
    layers = [model[i] for i in (0, 2, 3, 4, 6)]
    for number, layer in enumerate(layers):
        layer.weight.register_post_accumulate_grad_hook(lambda _, number=number: computed.append(number))
    for x, y in batches(8):
        computed.clear()
        selected = list(mask.selected)
        opt.step(closure_of(model, opt, x, y))
        assert sorted(computed) == sorted(selected * 2)
        assert all(p.requires_grad for p in model.parameters())


def test_the_base_optimizer_skips_layers_that_are_not_selected():
    """No weight decay, no momentum: parameters and moments stay, also in phases, where all gradients exist."""
    for in_phases in (False, True):
        model = network()
        mask = SLSAM(model, 0.4)
        opt = SAM(torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5), 0.1, mask=mask)
        for x, y in batches(6):
            closure = closure_of(model, opt, x, y)
            before = [(p.detach().clone(), opt.state[p].get("step", torch.zeros(())).clone()) for p in opt.parameters]
            active = [mask.selects(p) for p in opt.parameters]
            if in_phases:
                closure()
                opt.perturb()
                closure()
                opt.restore()
                opt.update()
            else:
                opt.step(closure)
            for p, (value, steps), moves in zip(opt.parameters, before, active, strict=True):
                assert torch.equal(p.detach(), value) != moves
                assert opt.state[p].get("step", torch.zeros(())) - steps == float(moves)


def test_a_layer_is_a_module_with_parameters_of_its_own_and_others_are_always_selected():
    tied = nn.Linear(4, 4, bias=False)
    model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": tied, "three": nn.Linear(4, 4, bias=False)})
    model["three"].weight = tied.weight
    mask = SLSAM(model, 0.5)
    assert len(mask.probabilities) == 2
    assert mask.selects(nn.Parameter(torch.ones(1)))
    picked = set()
    for _ in range(20):
        picked |= {(mask.selects(model["one"].weight), mask.selects(model["one"].bias), mask.selects(tied.weight))}
        mask.end_step([])
    assert picked == {(True, True, False), (False, False, True)}


def test_gradients_that_are_not_finite_or_0_do_not_change_the_weights():
    model = nn.Linear(2, 2)
    mask = SLSAM(nn.Sequential(model, nn.Linear(2, 2)))
    for value in (math.nan, math.inf, 0.0):
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        mask.selected = [0]
        mask.before_descent(list(model.parameters()))
    assert torch.equal(mask.state_dict([])["logs"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SLSAM(network(), 0.0), "mask: expected a density > 0 and <= 1, found 0.0"),
        (lambda: SLSAM(network(), exploration=0), "mask: expected an exploration > 0 and <= 1, found 0"),
        (lambda: SLSAM(nn.Tanh()), "mask: expected a model with parameters that are not frozen, found none"),
        (
            lambda: SAM(torch.optim.SGD(network().parameters()), mask=SLSAM(network()), ascent="dp-sat"),
            "mask: expected the ascent sam for SLSAM, found dp-sat",
        ),
        (
            lambda: SLSAM(network()).check(SLSAM(nn.Linear(2, 2)).state_dict([]), []),
            "state_dict: expected the weights of 5 layers, found 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_the_draw_repeats_for_its_seed():
    runs = []
    for seed in (1, 1, 2):
        mask, run = SLSAM(network(), 0.4, seed=seed), []
        for _ in range(12):
            run.append(tuple(mask.selected))
            mask.end_step([])
        runs.append(run)
    assert runs[0] == runs[1] != runs[2]
    assert any(a != b for a, b in itertools.pairwise(runs[0]))


def test_frozen_layers_are_not_drawn():
    model = network()
    model[:5].requires_grad_(False)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, mask=SLSAM(model, 0.2))
    for x, y in batches(5):  # a draw of frozen layers only would leave nothing to differentiate
        before = flat(model)
        opt.step(closure_of(model, opt, x, y))
        assert (flat(model) != before)[-27:].all()
