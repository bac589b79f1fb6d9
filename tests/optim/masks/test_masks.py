"""What all masks share: their names, every combination with ascent and metric, failures, and saved states."""

import copy
import itertools

import pytest
import torch
from torch import distributed, nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import masks
from lsam_hpc.options.ascent import MASKS, AscentOptions
from tests.helpers.problems import batches, closure_of, flat, samples


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()


def make(name, model, refresh=3):
    if name == "layers":
        return masks.Layers(model, ["0.*"])
    return masks.make(AscentOptions(mask=name, mask_refresh=refresh), model, samples(), 20)


NAMES = [*MASKS, "layers"]


def test_a_name_makes_the_mask_of_its_method():
    model = network()
    options = {"mask_density": 0.25, "mask_refresh": 7, "mask_pattern": "1:4"}
    made = {name: masks.make(AscentOptions(mask=name, **options), model, samples(), 20) for name in MASKS}
    assert {name: type(mask).__name__ for name, mask in made.items()} == {
        "all": "Mask",
        "norm": "Norm",
        "random": "Random",
        "ssam-f": "SSAMF",
        "ssam-d": "SSAMD",
        "fsam": "FSAM",
        "tensors": "Tensors",
        "sl-sam": "SLSAM",
        "adasap": "AdaSAP",
    }
    for name in ("random", "ssam-f", "ssam-d", "fsam", "tensors", "sl-sam"):
        assert made[name].density == 0.25
    for name in ("random", "ssam-f", "ssam-d", "fsam"):
        assert made[name].refresh == 7
    assert made["ssam-d"].total == 20
    assert made["ssam-f"].make([model[0].weight])[0].sum() == 12
    defaults = {name: masks.make(AscentOptions(mask=name), model, samples(), 20) for name in MASKS}
    assert [defaults[name].refresh for name in ("random", "fsam", "ssam-f", "ssam-d")] == [100, 100, 1000, 1000]
    # The options also reach a mask that SAM makes of a name.
    opt = SAM(torch.optim.SGD(model.parameters()), mask="random", mask_density=0.125, mask_refresh=2)
    assert (opt.perturbation.mask.density, opt.perturbation.mask.refresh) == (0.125, 2)


NEEDS = "mask: expected lsam_hpc.optim.masks."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mask": "some"},
            "mask: expected all, norm, random, ssam-f, ssam-d, fsam, tensors, sl-sam, adasap, layers or a mask, found "
            "'some'",
        ),
        ({"mask": "norm"}, NEEDS + "Norm(model), because it needs the model, found 'norm'"),
        ({"mask": "layers"}, NEEDS + "Layers(model, [\"layer4.*\"]), because it needs the model, found 'layers'"),
        ({"mask": "ssam-f"}, NEEDS + "SSAMF(model, data), because it needs the model and the data set, found 'ssam-f'"),
        ({"mask": "ssam-d"}, NEEDS + "SSAMD(total_steps), because it needs the number of steps, found 'ssam-d'"),
        ({"mask": "fsam"}, NEEDS + "FSAM(model), because it needs the model, found 'fsam'"),
        ({"mask": "sl-sam"}, NEEDS + "SLSAM(model), because it needs the model, found 'sl-sam'"),
        ({"mask": "adasap"}, NEEDS + "AdaSAP(model), because it needs the model, found 'adasap'"),
        ({"mask_density": 0.0}, "mask_density: expected a number > 0 and <= 1, found 0.0"),
        ({"mask_refresh": 0}, "mask_refresh: expected a whole number of ascents >= 1, found 0"),
        *(
            (
                {"mask_pattern": wrong},
                f"mask_pattern: expected none or N:M with N from 1 to M - 1, such as 2:4, found '{wrong}'",
            )
            for wrong in ("4", "0:4", "4:4", "a:b", "2:4:8")
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), **options)
    assert str(caught.value) == message


class ClosureError(Exception):
    """Raised by a closure."""


@pytest.mark.parametrize("fail_at", [1, 2])
@pytest.mark.parametrize("mask", NAMES)
def test_after_a_failed_step_parameters_and_requires_grad_are_as_before(mask, fail_at):
    model = network()
    model[0].bias.requires_grad_(False)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=make(mask, model))
    before = [p.requires_grad for p in model.parameters()]
    failed = 0
    for x, y in batches(12):
        value, calls = flat(model), []
        closure = closure_of(model, opt, x, y)

        def failing(closure=closure, calls=calls):
            calls.append(1)
            if len(calls) == fail_at:
                raise ClosureError
            return closure()

        with pytest.raises(ClosureError):
            opt.step(failing)
        failed += 1
        assert torch.equal(flat(model), value)
        assert [p.requires_grad for p in model.parameters()] == before
        opt.step(closure)
        assert [p.requires_grad for p in model.parameters()] == before
    assert failed == 12


@pytest.mark.parametrize("broken", ["climb", "update"])
@pytest.mark.parametrize("mask", ["tensors", "sl-sam"])
def test_after_an_error_inside_a_step_requires_grad_is_as_before(mask, broken, monkeypatch):
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, mask=make(mask, model))

    def fails(*args, **kwargs):
        raise MemoryError

    data = list(batches(3))
    opt.step(closure_of(model, opt, *data[0]))
    with monkeypatch.context() as patch:
        patch.setattr(opt, broken, fails)
        with pytest.raises(MemoryError):
            opt.step(closure_of(model, opt, *data[1]))
    assert all(p.requires_grad for p in model.parameters())
    opt.step(closure_of(model, opt, *data[2]))


@pytest.mark.parametrize("mask", NAMES)
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(mask, tmp_path):
    data, metric = list(batches(16)), "adaptive"

    def go(model, opt, first, last):
        for x, y in data[first:last]:
            opt.step(closure_of(model, opt, x, y))

    model = network()
    opt = SAM(torch.optim.AdamW(model.parameters(), lr=0.01), 0.1, metric=metric, mask=make(mask, model))
    go(model, opt, 0, 8)
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "s.pt")
    saved = torch.load(tmp_path / "s.pt", weights_only=True)
    go(model, opt, 8, 16)
    again = network(seed=5)
    other = SAM(torch.optim.AdamW(again.parameters(), lr=0.01), 0.1, metric=metric, mask=make(mask, again))
    go(again, other, 0, 3)  # the state of a mask that has been used is replaced too
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    go(again, other, 8, 16)
    assert torch.equal(flat(again), flat(model))
    for one, name in itertools.product([opt], NAMES):
        wrong = make(name, model)
        if type(wrong) is not type(opt.perturbation.mask):
            with pytest.raises(InputError, match="state_dict: expected the state of the mask"):
                wrong.check(one.state_dict()["sam"]["mask"], one.parameters)


@pytest.mark.parametrize("mask", NAMES)
def test_a_deep_copy_of_model_and_optimizer_has_the_mask_of_the_copied_parameters(mask):
    model, data = network(), list(batches(8))
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.5, mask=make(mask, model, 100))
    for x, y in data[:4]:
        opt.step(closure_of(model, opt, x, y))
    twin_model, twin = copy.deepcopy((model, opt))
    for x, y in data[4:]:
        opt.step(closure_of(model, opt, x, y))
        twin.step(closure_of(twin_model, twin, x, y))
        assert torch.equal(flat(model), flat(twin_model))
    assert twin.perturbation_norm > 0


@pytest.mark.parametrize("mask", ["ssam-f", "tensors", "sl-sam"])
def test_under_ddp_a_step_is_the_same(mask, tmp_path):
    """Both masks that switch off gradients, and the one that calls the model, with one rank."""
    results = []
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for wrapped in (False, True):
            model = network()
            module = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if wrapped else model
            opt = SAM(torch.optim.SGD(module.parameters(), lr=0.3), 0.2, mask=make(mask, module, 2))
            for x, y in batches(8):
                opt.step(closure_of(module, opt, x, y))
            results.append(flat(model))
    finally:
        distributed.destroy_process_group()
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("mask", ["random", "fsam", "ssam-d"])
def test_masks_handle_parameters_that_are_used_in_turn(mask):
    """Three branches used in turn: each parameter keeps its mask until the next refresh."""
    model = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 5)]).double()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.2, mask=make(mask, model, 100))
    seen = {}
    for step, (x, _) in enumerate(batches(9)):

        def closure(x=x, step=step):
            opt.zero_grad()
            loss = (model[step % 3](x) ** 2).mean()
            loss.backward()
            return loss

        opt.step(closure)
        state = opt.state_dict()["sam"]["mask"]
        for (i, m), made in zip(sorted(state["masks"].items()), state["made"], strict=True):
            if step and made:  # ssam-d replaces the masks of the first step at its end
                assert torch.equal(seen.setdefault(i, m), m)
    assert len(seen) == (3 if mask == "fsam" else 6)
