"""The base optimizers that `lsam train --optimizer` makes: their classes, their arguments and their states."""

import pytest
import torch

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.tvlars import TVLARS
from lsam_hpc.train import config as config_module
from lsam_hpc.train.builders import lr_factor, make_base
from lsam_hpc.train.config import TrainConfig, parse
from tests.helpers.problems import batches, closure_of, flat, gradient, network

NAMES = ["sgd", "lars", "tvlars", "lamb", "adamw"]


def base_of(model, *words):
    return make_base(parse(words), model)


@pytest.mark.parametrize(
    ("name", "cls", "expected"),
    [
        ("sgd", "torch.optim.sgd.SGD", {"momentum": 0.7}),
        ("lars", "pytorch_optimizer.optimizer.lars.LARS", {"momentum": 0.7, "trust_coefficient": 1e-3}),
        ("lamb", "pytorch_optimizer.optimizer.lamb.Lamb", {"betas": (0.9, 0.999)}),
        ("adamw", "torch.optim.adamw.AdamW", {"betas": (0.9, 0.999)}),
        (
            "tvlars",
            "lsam_hpc.optim.tvlars.TVLARS",
            {"momentum": 0.7, "trust_coefficient": 1e-3, "lambda_": 0.02, "delay": 30, "floor": 0.125, "alpha": 1.0},
        ),
    ],
)
def test_the_options_reach_the_optimizer(name, cls, expected):
    words = "--lr 0.25 --weight-decay 0.125 --momentum 0.7 --tvlars-lambda 0.02 --tvlars-delay 30 --tvlars-floor 0.125"
    model = network()
    base = base_of(model, "--optimizer", name, *words.split())
    assert f"{type(base).__module__}.{type(base).__qualname__}" == cls
    (group,) = base.param_groups
    found = {key: group[key] for key in ("lr", "weight_decay", *expected)}
    assert found == {"lr": 0.25, "weight_decay": 0.125, **expected}
    assert all(p is q for p, q in zip(group["params"], model.parameters(), strict=True))


@pytest.mark.parametrize("clip", ["0", "0.25"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, name, clip):
    data = list(batches(20))

    def start(model):
        words = ("--optimizer", name, "--lr", "0.05", "--tvlars-lambda", "0.3", "--clip-coordinates", clip)
        return SAM(base_of(model, *words), 0.1, ascent="dp-sat")

    def go(model, opt, first, last):
        for x, y in data[first:last]:
            opt.step(closure_of(model, opt, x, y))

    model = network()
    opt = start(model)
    go(model, opt, 0, 10)
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "s.pt")
    go(model, opt, 10, 20)

    saved = torch.load(tmp_path / "s.pt", weights_only=True)
    again = network(seed=5)
    again.load_state_dict(saved["model"])
    other = start(again)
    other.load_state_dict(saved["opt"])
    go(again, other, 10, 20)
    assert torch.equal(flat(again), flat(model))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_continues_after_the_state_is_cleared(name):
    model = network()
    opt = SAM(base_of(model, "--optimizer", name), 0.1)
    for x, y in batches(4):
        opt.step(closure_of(model, opt, x, y))
        opt.state.clear()  # as after a rejected exchange
    assert flat(model).isfinite().all()


def test_clipping_is_of_the_descent():
    model = network()
    words = "--momentum 0 --weight-decay 0 --clip-coordinates 0.9"
    opt = SAM(base_of(model, *words.split()), rho=0.0)
    x, y = next(batches(1))
    before = flat(model)
    g = gradient(model, before, x, y)
    opt.step(closure_of(model, opt, x, y))
    threshold = g.abs().sort(descending=True).values[int(0.9 * len(g))]
    torch.testing.assert_close(before - flat(model), 0.1 * g.clamp(-threshold, threshold), rtol=0, atol=1e-12)
    assert not base_of(model)._optimizer_step_pre_hooks


def test_tvlars_replaces_the_warmup():
    assert lr_factor(TrainConfig(), 0, 1000) == pytest.approx(1 / 51)
    assert lr_factor(TrainConfig(warmup=0.0), 0, 1000) == 1
    assert lr_factor(TrainConfig(optimizer="tvlars"), 0, 1000) == 1
    assert lr_factor(parse(["--optimizer", "tvlars", "--warmup", "0"]), 0, 1000) == 1
    assert isinstance(base_of(network(), "--optimizer", "tvlars"), TVLARS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer adam", "--optimizer: expected one of sgd, lars, tvlars, lamb, adamw, found 'adam'"),
        ("--momentum 1", "--momentum: expected a number >= 0 and < 1, found 1.0"),
        (
            "--optimizer tvlars --warmup 0.1",
            "--warmup: expected 0 with --optimizer tvlars, which replaces it, found 0.1",
        ),
        ("--tvlars-lambda -1", "--tvlars-lambda: expected a finite number >= 0, found -1.0"),
        ("--tvlars-delay -1", "--tvlars-delay: expected a whole number >= 0, found -1"),
        ("--tvlars-floor -1", "--tvlars-floor: expected a finite number >= 0, found -1.0"),
        ("--clip-coordinates 1", "--clip-coordinates: expected a number >= 0 and < 1, found 1.0"),
    ],
)
def test_says_what_is_wrong_in_one_line(words, message):
    with pytest.raises(InputError) as caught:
        parse(words.split())
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_names_the_library_that_is_missing(monkeypatch, name):
    monkeypatch.setattr(config_module, "find_spec", lambda package: None)
    with pytest.raises(InputError) as caught:
        parse(["--optimizer", name])
    message = f"--optimizer {name}: expected pytorch_optimizer (pip install 'lsam-hpc[train]'), found none"
    assert str(caught.value) == message
