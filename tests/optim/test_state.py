"""A run resumed from a saved state equals the uninterrupted run, to the bit."""

import itertools

import pytest
import torch
from torch.nn import functional

from lsam_hpc import SAM
from lsam_hpc.optim import LocalCenter, LocalLSAM, masks
from tests.helpers.problems import batches, closure_of, flat, network, step_on


def make(kind, model, center, mask):
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    options = {"ascent": kind[0], "metric": kind[1], "mask": mask}
    if center is None:
        return SAM(base, lambda t: 0.01 * t, **options)
    with pytest.warns(UserWarning, match="exact Langevin"):
        return LocalLSAM(
            base,
            center,
            lambda t: 0.01 * t,
            coupling=kind[2],
            temperature=1e-3,
            period=4,
            pull=0.3,
            center_momentum=0.5,
            seed=3,
            **options,
        )


ASCENTS = list(itertools.product(["sam", "dp-sat", "sampa", "asyncsam", "msam", "gam"], ["l2", "adaptive"]))


@pytest.mark.parametrize("mask", [masks.Mask, lambda: masks.Random(0.5, 3)])
@pytest.mark.parametrize(
    "kind",
    [
        *[(*a, None) for a in ASCENTS],
        *itertools.product(["dp-sat", "center"], ["l2"], ["elastic", "kernel", "restart"]),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, kind, mask):
    data = list(batches(20))

    def go(model, opt, first, last):
        for x, y in data[first:last]:
            step_on(model, opt, x, y)

    model = network()
    center = LocalCenter(flat(model)) if kind[2] else None
    opt = make(kind, model, center, mask())
    go(model, opt, 0, 10)
    # The state of a chain does not include the center: the test saves it separately.
    torch.save(
        {"model": model.state_dict(), "opt": opt.state_dict(), "y": center and center.vector.clone()}, tmp_path / "s.pt"
    )
    go(model, opt, 10, 20)

    saved = torch.load(tmp_path / "s.pt", weights_only=True)
    again = network(seed=5)
    again.load_state_dict(saved["model"])
    other = make(kind, again, LocalCenter(saved["y"]) if kind[2] else None, mask())
    other.load_state_dict(saved["opt"])
    go(again, other, 10, 20)
    assert torch.equal(flat(again), flat(model))
    assert other.local_step == opt.local_step == 20
    assert other.global_step == opt.global_step


def test_a_plain_base_state_can_be_loaded():
    model, plain = network(), network()
    base = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    x, y = next(batches(1))
    base.step(closure_of(plain, base, x, y))
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.3)
    opt.load_state_dict(base.state_dict())
    assert opt.param_groups[0]["lr"] == 0.05
    assert opt.param_groups[0]["rho"] == 0.3
    opt.step(closure_of(model, opt, x, y))


def test_a_chain_refuses_another_chains_state():
    model = network()
    opt = LocalLSAM(torch.optim.SGD(model.parameters(), lr=0.1), LocalCenter(flat(model)))
    for wrong in ({}, SAM(torch.optim.SGD(network().parameters(), lr=0.1)).state_dict()):
        with pytest.raises(ValueError, match="state_dict: expected the state of a chain of 83 elements, found none"):
            opt.load_state_dict(wrong)


def test_the_mask_state_is_checked_before_anything_is_loaded():
    x, y = next(batches(1))
    opts = []
    for mask in (masks.Mask(), masks.Random(0.5, 3)):
        model = network()
        opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), mask=mask)
        opt.step(closure_of(model, opt, x, y))
        opts.append(opt)
    for one, other, names in ((opts[0], opts[1], ("Mask", "Random")), (opts[1], opts[0], ("Random", "Mask"))):
        state = other.state_dict()
        state["param_groups"][0]["lr"] = 7.0
        with pytest.raises(
            ValueError, match=f"state_dict: expected the state of the mask {names[0]}, found {names[1]}"
        ):
            one.load_state_dict(state)
        assert one.param_groups[0]["lr"] == 0.1


def test_a_saved_state_does_not_change_with_the_next_steps():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.2, ascent="dp-sat", metric="adaptive", mask="random")
    data = list(batches(3))
    opt.step(closure_of(model, opt, *data[0]))
    state = opt.state_dict()["sam"]
    copies = [g.clone() for g in state["last"].values()], [m.clone() for m in state["mask"]["masks"].values()]
    for x, y in data[1:]:
        opt.step(closure_of(model, opt, x, y))
    assert all(torch.equal(a, b) for a, b in zip(state["last"].values(), copies[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state["mask"]["masks"].values(), copies[1], strict=True))


def test_a_claimed_step_is_saved():
    model = network()
    x, y = next(batches(1))
    opt = LocalLSAM(torch.optim.SGD(model.parameters(), lr=0.1), LocalCenter(flat(model)))
    taken = []
    for step in opt.steps(10):
        taken.append(step)
        if step == 4:
            state = opt.state_dict()
            break
        opt.step(closure_of(model, opt, x, y))
    other = LocalLSAM(torch.optim.SGD(model.parameters(), lr=0.1), LocalCenter(flat(model)))
    other.load_state_dict(state)
    for step in other.steps(10):
        taken.append(step)
        other.step(closure_of(model, other, x, y))
    assert taken == [0, 1, 2, 3, 4, *range(4, 10)]


def test_a_resumed_chain_keeps_its_anchor_after_other_chains_moved_the_center():
    results = []
    for resumed in (False, True):
        models = [network(), network(seed=1)]
        center = LocalCenter(flat(models[0]))
        bases = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
        opts = [LocalLSAM(b, center, coupling="kernel", pull=0.3, period=4) for b in bases]
        for step, (x, y) in enumerate(batches(12)):
            for i in (0, 1):
                if not (step == 6 and i == 1):  # between the exchanges of the two chains
                    opts[i].step(closure_of(models[i], opts[i], x, y))
            if step == 6 and resumed:
                state = opts[0].state_dict()
                center.add(torch.ones_like(center.vector))
                opts[0] = LocalLSAM(
                    torch.optim.SGD(models[0].parameters(), lr=0.1), center, coupling="kernel", pull=0.3, period=4
                )
                opts[0].load_state_dict(state)
                center.add(-torch.ones_like(center.vector))
            if step == 7:
                results.append(flat(models[0]))
    assert torch.allclose(results[0], results[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("saved_by", ["dp-sat", "asyncsam", "sampa"])
@pytest.mark.parametrize("loaded_by", ["sam", "dp-sat", "asyncsam", "sampa"])
def test_an_ascent_begins_anew_after_the_state_of_another_one(saved_by, loaded_by):
    model, again = network(), network()
    opt, other = (SAM(torch.optim.SGD(m.parameters()), ascent=a) for m, a in ((model, saved_by), (again, loaded_by)))
    for x, y in batches(3):
        step_on(model, opt, x, y)
    other.load_state_dict(opt.state_dict())
    assert bool(other.last.params) == (saved_by == loaded_by)


def test_a_saved_mini_batch_keeps_its_keys():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters()), ascent="sampa")

    def closure(batch):
        opt.zero_grad()
        loss = functional.cross_entropy(model(batch["0"]), batch["1"])
        loss.backward()
        return loss

    for x, y in batches(2):
        opt.step(closure, batch={"0": x, "1": y})
        opt.load_state_dict(opt.state_dict())
